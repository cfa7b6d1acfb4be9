# SPDX-License-Identifier: Apache-2.0
"""The signed distance field: encodings, the field that nerfstudio sees, and NeuS' learnt variance."""

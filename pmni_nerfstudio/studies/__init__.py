# SPDX-License-Identifier: Apache-2.0
"""Several methods, scenes and seeds: each trained and measured in processes of its own."""

# SPDX-License-Identifier: Apache-2.0
"""The pages: live in training, and `pmni view` without a model."""

# SPDX-License-Identifier: Apache-2.0
"""Scene folders and their files, and nerfstudio's data parser, dataset and data manager for them."""

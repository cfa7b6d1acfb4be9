# SPDX-License-Identifier: Apache-2.0
"""From files to batches: the scene folder, nerfstudio's dataparser and dataset, and the data manager."""

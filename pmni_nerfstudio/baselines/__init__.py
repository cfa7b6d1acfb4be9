# SPDX-License-Identifier: Apache-2.0
"""Other methods on our scenes, to compare with: nerfstudio's own surface models, made to run without a GPU."""

# SPDX-License-Identifier: Apache-2.0
"""The neural stage: poses, marching, rendering and losses as parts, and the nerfstudio model that joins them."""

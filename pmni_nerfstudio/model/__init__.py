# SPDX-License-Identifier: Apache-2.0
"""The neural surface model: field rendering, ray marching, losses, pose optimizer, and the nerfstudio model around them."""

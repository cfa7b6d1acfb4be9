# SPDX-License-Identifier: Apache-2.0
"""Scores of meshes, poses and normals against the truth, and pictures of them."""

# SPDX-License-Identifier: Apache-2.0
"""Errors of meshes, poses and normals against ground truth, result folders on disk, and comparison pictures."""

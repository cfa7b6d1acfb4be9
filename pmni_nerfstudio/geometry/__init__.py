# SPDX-License-Identifier: Apache-2.0
"""Geometry that everything else builds on: transforms, cameras, normals, ray casting, meshes and visual hulls."""

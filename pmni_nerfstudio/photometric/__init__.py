# SPDX-License-Identifier: Apache-2.0
"""Photometric stereo: normals, albedo and confidence of each view from images under known lights."""

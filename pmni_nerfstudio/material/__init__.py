# SPDX-License-Identifier: Apache-2.0
"""Reflectance of a surface from images under known lights: roughness, specular and albedo, and relit pictures."""

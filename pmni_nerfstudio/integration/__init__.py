# SPDX-License-Identifier: Apache-2.0
"""Depth from one view's normals."""

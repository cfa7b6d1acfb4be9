# SPDX-License-Identifier: Apache-2.0
"""Surfaces and camera poses from multi-view normal maps, as a nerfstudio method: PMNI (CVPR 2025) and beyond.

The package imports nothing here, because nerfstudio imports it at every start to find the methods that it registers.
"""

# SPDX-License-Identifier: Apache-2.0
"""Baselines for comparison: nerfstudio's surface models, adapted to our scenes and to machines without a GPU."""

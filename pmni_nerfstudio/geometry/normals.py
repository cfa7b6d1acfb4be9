# SPDX-License-Identifier: Apache-2.0
"""Normal maps compared, and shown as colours."""

from __future__ import annotations

import numpy as np


def angular_error_deg(normals: np.ndarray, true_normals: np.ndarray) -> np.ndarray:
    """Angle in degrees (...) between vectors (..., 3), of any length; where one is zero, no surface, 90."""
    a, b = normals.astype(np.float64), true_normals.astype(np.float64)
    sine, cosine = np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)
    # unlike the arc cosine, exact for small angles
    angle = np.degrees(np.arctan2(sine, cosine))
    return np.where((a == 0).all(-1) | (b == 0).all(-1), 90.0, angle)


def normal_colours(normals: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """OpenCV camera normals (H, W, 3) as RGB in [0, 1]: x right, y up, z to the viewer; white off the mask (H, W)."""
    rgb = np.clip((normals * np.array([1.0, -1.0, -1.0]) + 1) / 2, 0, 1)
    return np.where(mask[..., None], rgb, 1.0)

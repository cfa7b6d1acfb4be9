# SPDX-License-Identifier: Apache-2.0
"""Normal maps: angles between normals, and normals as colors."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from pmni_nerfstudio.geometry.transforms import Array, flip_y_and_z

if TYPE_CHECKING:
    from torch import Tensor


def angular_error_deg(normals: np.ndarray, true_normals: np.ndarray) -> np.ndarray:
    """Angles in degrees (...) between vectors (..., 3) of any length; 90 where either vector is zero."""
    a, b = normals.astype(np.float64), true_normals.astype(np.float64)
    sine, cosine = np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)
    # Unlike the arc cosine, the arc tangent is accurate for small angles.
    angle = np.degrees(np.arctan2(sine, cosine))
    return np.where((a == 0).all(-1) | (b == 0).all(-1), 90.0, angle)


def normals_to_rgb(normals: Array, mask: Array) -> Array:
    """Color-code normals the way the field shows them: x right, y up, z towards the viewer, mapped to [0, 1].

    Args:
        normals: (..., 3) in OpenCV camera axes; NumPy array or tensor.
        mask: (..., 1), nonzero on the object; of the same kind. Pixels off the object become white.
    """
    rgb = ((flip_y_and_z(normals) + 1) / 2).clip(0, 1)
    if isinstance(rgb, np.ndarray):
        return cast(Array, np.where(np.asarray(mask) > 0, rgb, np.ones_like(rgb)))
    return cast(Array, rgb.where(cast("Tensor", mask) > 0, rgb.new_ones(())))

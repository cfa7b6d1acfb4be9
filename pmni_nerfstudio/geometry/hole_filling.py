# SPDX-License-Identifier: Apache-2.0
"""Continuation of normal maps over holes: mask pixels without a normal, such as shadows and highlights.

Filled normals serve where a map has to be continuous, as for integration; they are never compared with a surface.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt

_WIDEST_PX = 32.0
"""Largest standard deviation of the averages, in pixels; farther from all normals, the nearest one is taken."""
_LEAST_WEIGHT = 1e-3
"""Least weight of the valid pixels in an average."""


def fill_holes(
    normals: Float[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w 3"]:
    """Continue a normal map over the holes of its mask.

    Each hole pixel gets the Gaussian average of the valid normals around it, as narrow as reaches some.

    Args:
        normals: unit normals at valid pixels.
        mask: pixels of the object.
        valid: mask pixels with a normal, at least one; if these are all, the map is returned as it is.

    Returns:
        Unit normals on the mask, unchanged at valid pixels, float32.
    """
    missing = mask & ~valid
    if not missing.any():
        return normals
    known = np.where(valid[..., None], normals, 0).astype(np.float32)
    filled, weight = known.copy(), valid.astype(np.float32)
    sigma = 1.0
    while missing.any() and sigma <= _WIDEST_PX:
        mean = cv2.GaussianBlur(known, (0, 0), sigma)
        length = np.linalg.norm(mean, axis=-1)
        reached = missing & (cv2.GaussianBlur(weight, (0, 0), sigma) > _LEAST_WEIGHT) & (length > 1e-6)
        filled[reached] = mean[reached] / length[reached, None]
        missing &= ~reached
        sigma *= 2
    if missing.any():
        y, x = np.asarray(distance_transform_edt(~valid, return_distances=False, return_indices=True))
        filled[missing] = known[y[missing], x[missing]]
    return filled

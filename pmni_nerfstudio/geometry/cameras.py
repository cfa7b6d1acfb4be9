# SPDX-License-Identifier: Apache-2.0
"""Rays through the pixels of a pinhole camera, in double precision and with no framework: for exact renderers and scores."""

from __future__ import annotations

import numpy as np


def pixel_rays(K: np.ndarray, c2w: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Rays through all pixels of one view, world frame.

    Args:
        K: (3, 3), integer pixel centres.
        c2w: (4, 4), OpenCV axes.

    Returns:
        origins and unit directions, each (height * width, 3), row-major.
    """
    v, u = np.mgrid[0:height, 0:width]
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], axis=-1)
    directions = pixels @ np.linalg.inv(K).T @ c2w[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return np.broadcast_to(c2w[:3, 3], directions.shape), directions

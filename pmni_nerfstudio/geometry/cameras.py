# SPDX-License-Identifier: Apache-2.0
"""Pinhole projection: pixels to rays, points to pixels. Pixel centers lie at integers, camera axes are OpenCV's."""

from __future__ import annotations

from typing import cast

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.geometry.transforms import Array


def pixel_grid(width: int, height: int) -> Float[np.ndarray, "h w 2"]:
    """Pixel centers (x, y) of an image, float64."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x, y], axis=-1).astype(np.float64)


def pixel_directions(K: Float[np.ndarray, "3 3"], pixels: Float[np.ndarray, "*b 2"]) -> Float[np.ndarray, "*b 3"]:
    """Camera-space rays through pixels, K^-1 (x, y, 1): their depth along the optical axis is 1, not their length.

    Args:
        K: intrinsics in pixels, skew allowed.
        pixels: (x, y), of any numeric type.
    """
    ones = np.ones((*pixels.shape[:-1], 1))
    return np.concatenate([pixels, ones], axis=-1) @ np.linalg.inv(K).T


def pixel_rays(
    K: Float[np.ndarray, "3 3"], c2w: Float[np.ndarray, "4 4"], width: int, height: int
) -> tuple[Float[np.ndarray, "r 3"], Float[np.ndarray, "r 3"]]:
    """World-space rays through all pixels of one view, in double precision.

    Args:
        K: intrinsics in pixels.
        c2w: camera-to-world.
        width: of the image, in pixels.
        height: of the image, in pixels.

    Returns:
        Origins and unit directions, each (height * width, 3), row-major.
    """
    directions = pixel_directions(K, pixel_grid(width, height).reshape(-1, 2)) @ c2w[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return np.broadcast_to(c2w[:3, 3], directions.shape), directions


def corrected_intrinsics(
    K: Float[np.ndarray, "n 3 3"], focal_factor: float, shift_px: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, "n 3 3"]:
    """Intrinsics with focal lengths (and skew) multiplied by a factor and principal points shifted, in all views alike."""
    out = K.copy()
    out[:, :2, :2] *= focal_factor
    out[:, :2, 2] += shift_px
    return out


def strided_intrinsics(K: Float[np.ndarray, "*b 3 3"], step: float) -> Float[np.ndarray, "*b 3 3"]:
    """Intrinsics of maps of which every step-th pixel along each axis is kept, beginning with the first."""
    out = K.copy()
    out[..., :2, :] /= step
    return out


def project(points: Array, K: Array) -> Array:
    """Pixels (..., 2) of points (..., 3) in camera coordinates. Points at depth zero have no finite pixel.

    Args:
        points: NumPy array or tensor.
        K: (3, 3), or (..., 3, 3) with one matrix for each point; of the same kind as the points.
    """
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    u = (K[..., 0, 0] * x + K[..., 0, 1] * y) / z + K[..., 0, 2]
    v = K[..., 1, 1] * y / z + K[..., 1, 2]
    if isinstance(points, np.ndarray):
        return cast(Array, np.stack([u, v], axis=-1))
    import torch

    return cast(Array, torch.stack([u, v], dim=-1))

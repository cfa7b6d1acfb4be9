# SPDX-License-Identifier: Apache-2.0
"""Normal maps: angles between normals, and normals as colors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import numpy as np

from pmni_nerfstudio.geometry.transforms import Array, flip_y_and_z

if TYPE_CHECKING:
    from torch import Tensor


_ROWS = 32
"""Rows processed at once, so that temporary arrays fit the cache: several times as fast for large maps."""


def strips(height: int) -> Iterator[slice]:
    """Slices of some rows each that cover a map of a height, for work whose temporary arrays should stay small."""
    for start in range(0, height, _ROWS):
        yield slice(start, min(start + _ROWS, height))


def has_normal(normals: np.ndarray) -> np.ndarray:
    """Pixels (H, W) of a map (H, W, 3) that are not zero."""
    found = np.empty(normals.shape[:2], dtype=bool)
    for rows in strips(len(normals)):
        x, y, z = (normals[rows, :, axis] != 0 for axis in range(3))
        np.logical_or(x, y, out=found[rows])
        found[rows] |= z
    return found


def vector_lengths(vectors: np.ndarray) -> np.ndarray:
    """Lengths (H, W) float32 of a map (H, W, 3); infinite if the square overflows."""
    length = np.empty(vectors.shape[:2], dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in strips(len(vectors)):
            np.sqrt(np.einsum("hwi,hwi->hw", vectors[rows], vectors[rows]), out=length[rows], casting="same_kind")
    return length


def rotate_in_place(normals: np.ndarray, rotation: np.ndarray) -> None:
    """Rotate the vectors of a map (H, W, 3) by a matrix (3, 3), without a second map in memory."""
    if np.array_equal(rotation, np.eye(3)):
        return
    transposed = rotation.T.astype(normals.dtype)
    for rows in strips(len(normals)):
        normals[rows] = normals[rows] @ transposed


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

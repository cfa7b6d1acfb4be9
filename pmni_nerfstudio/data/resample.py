# SPDX-License-Identifier: Apache-2.0
"""Maps at another size, and the intrinsics that go with them.

A pixel is an area, its centre at an integer: pixel x of the old map covers [x - .5, x + .5]. Shrinking takes means over
areas, growing interpolates linearly; both are weighted by the mask, so that no background leaks over the outline.
"""

from __future__ import annotations

import cv2
import numpy as np

MIN_SIDE = 8
"""Pixels: a smaller map holds no patch and no outline worth the name."""


def resampled_size(width: int, height: int, factor: float) -> tuple[int, int]:
    """Width and height of a map after resampling, rounded to whole pixels.

    Raises:
        ValueError: the factor is not positive and finite, or leaves less than 8 pixels of a side.
    """
    if not (np.isfinite(factor) and factor > 0):
        raise ValueError(f"{factor} is no factor: it has to be positive")
    new_width, new_height = round(width * factor), round(height * factor)
    if min(new_width, new_height) < MIN_SIDE:
        raise ValueError(f"{factor} would leave {new_width}x{new_height} of {width}x{height} pixels: at least 8 a side")
    return new_width, new_height


def resample_intrinsics(K: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Intrinsics (*b, 3, 3) for maps resampled from `size` to `new_size` (both width, height).

    Pixel centres are at integers before and after: cx' = (cx + .5) s - .5.
    """
    sx, sy = new_size[0] / size[0], new_size[1] / size[1]
    return np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]]) @ K


def resample_mask(mask: np.ndarray, new_size: tuple[int, int]) -> np.ndarray:
    """Mask (H, W) bool at another size (width, height): true where at least half of a new pixel's area is."""
    return _resize(mask.astype(np.float32), new_size) >= 0.5


def resample_normals(normals: np.ndarray, mask: np.ndarray, new_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Normals and their mask at another size.

    Args:
        normals: (H, W, 3) float32, unit on the mask, any axes.
        mask: (H, W) bool.
        new_size: width, height.

    Returns:
        normals (H', W', 3) float32, unit on the new mask and zero off it, and the new mask (H', W') bool. A pixel in
        which opposite normals cancel out leaves the mask: it has no direction.
    """
    total = _resize(np.where(mask[..., None], normals, np.float32(0)), new_size)
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    new_mask = resample_mask(mask, new_size) & (length[..., 0] > 1e-3)
    return np.divide(total, length, out=np.zeros_like(total), where=new_mask[..., None]), new_mask


def _resize(array: np.ndarray, new_size: tuple[int, int]) -> np.ndarray:
    """Area means where a map shrinks, linear interpolation where it grows; OpenCV aligns the maps' outer edges."""
    height, width = array.shape[:2]
    shrinks = new_size[0] < width or new_size[1] < height
    return cv2.resize(array, new_size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

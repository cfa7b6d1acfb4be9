# SPDX-License-Identifier: Apache-2.0
"""Resampling of maps and their intrinsics.

Pixels are areas with their centers at integers: pixel x covers [x - 0.5, x + 0.5]. Downsampling averages over areas,
upsampling interpolates linearly. Pixels without a normal have no influence on the normals.
"""

from __future__ import annotations

import cv2
import numpy as np

MIN_SIDE = 8
"""Smallest permitted width and height of a map, in pixels."""


def resampled_size(width: int, height: int, factor: float) -> tuple[int, int]:
    """Width and height of a map after resampling, rounded to whole pixels.

    Raises:
        ValueError: the factor is not positive and finite, or a side would have fewer than MIN_SIDE pixels.
    """
    if not (np.isfinite(factor) and factor > 0):
        raise ValueError(f"{factor} is not a positive number")
    new_width, new_height = round(width * factor), round(height * factor)
    if min(new_width, new_height) < MIN_SIDE:
        raise ValueError(
            f"{factor} reduces {width}x{height} to {new_width}x{new_height} pixels, fewer than {MIN_SIDE} per side"
        )
    return new_width, new_height


def resample_intrinsics(K: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Intrinsics (*b, 3, 3) of maps resampled from `size` to `new_size` (width, height).

    With pixel centers at integers, cx' = (cx + 0.5) s - 0.5.
    """
    sx, sy = new_size[0] / size[0], new_size[1] / size[1]
    return np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]]) @ K


def resample_mask(mask: np.ndarray, new_size: tuple[int, int]) -> np.ndarray:
    """Resample a mask (H, W) to a size (width, height): true if at least half of the area of a new pixel is."""
    return _resize(mask.astype(np.float32), new_size) >= 0.5


def resample_normals(normals: np.ndarray, mask: np.ndarray, new_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Resample normals and their mask.

    Args:
        normals: (H, W, 3) float32 in any axes, unit length or, without a normal, zero.
        mask: (H, W) bool.
        new_size: width, height.

    Returns:
        normals (H', W', 3) float32 and the new mask (H', W') bool. A new pixel has a normal, of unit length, if at least
        half of its part of the mask has normals, and these do not cancel.
    """
    new_mask = resample_mask(mask, new_size)
    share = _resize(mask.astype(np.float32), new_size)
    valid = mask & normals.any(axis=-1)
    valid_share = _resize(valid.astype(np.float32), new_size)
    total = _resize(np.where(mask[..., None], normals, np.float32(0)), new_size)
    return normalized(total, new_mask & (2 * valid_share >= share)), new_mask


def normalized(total: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Averaged normals (H, W, 3) at unit length; zero where `where` (H, W) is false, or where opposite normals cancel."""
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.divide(total, length, out=np.zeros_like(total), where=where[..., None] & (length > 1e-3))


def _resize(array: np.ndarray, new_size: tuple[int, int]) -> np.ndarray:
    """Area averages if the map shrinks, else linear interpolation; OpenCV aligns the outer edges of both maps."""
    height, width = array.shape[:2]
    shrinks = new_size[0] < width or new_size[1] < height
    return cv2.resize(array, new_size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

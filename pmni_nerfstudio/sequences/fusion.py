# SPDX-License-Identifier: Apache-2.0
"""Fusion of the normal maps of static cameras over time, where the surface did not move."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float

BLUR_PX = 2.0
"""Standard deviation of the Gaussian blur of the maps that are compared with each other, in pixels: their differences are
due to motion and to smooth bias, not to the noise of single pixels."""
REACH = 8
"""Number of frames before and after a frame that contribute to it."""
_CUTOFF = 3.0
"""Difference of the blurred maps at which a frame no longer contributes, relative to the usual difference of neighboring
frames."""
_RIDGE = 10.0
"""Squared ratio of the noise of blurred maps to the change from frame to frame that is usual where a surface moves."""
_LEAST_CUTOFF, _MAX_CUTOFF = 0.03, 0.3
"""Bounds of that difference, as the chord between unit normals."""


def fuse_over_time(
    normals: Float[np.ndarray, "f h w 3"], valid: Bool[np.ndarray, "f h w"], frames: Sequence[int] | None = None
) -> Float[np.ndarray, "g h w 3"]:
    """Fuse the normals that one static camera measured at several moments, pixel by pixel.

    Each normal becomes the value of a linear fit over time to the normals of the same pixel (local linear regression),
    the slope from the blurred maps, weighted by Tukey's biweight of their difference from it after a spatial blur. Noise and bias that change from frame to
    frame thus average out where the surface stands still. Where it moves, the normals of other frames differ and get no
    weight; where they change slowly, the fit follows them. What remains in between is an error less than the cutoff.

    Args:
        normals: normals of one view, unit length where valid, zero elsewhere.
        valid: pixels with a normal.
        frames: indices of the frames to fuse; by default all.

    Returns:
        Unit normals of these frames where they are valid, zero elsewhere.
    """
    count = len(normals)
    smooth = np.stack([_blurred(n, v) for n, v in zip(normals, valid)])
    cutoff = _cutoff(smooth, valid)
    out = []
    for frame in range(count) if frames is None else frames:
        moments = np.zeros((3, *valid.shape[1:]))
        total, smooth_total, smooth_slope = (np.zeros(normals.shape[1:]) for _ in range(3))
        for other in range(max(0, frame - REACH), min(count, frame + REACH + 1)):
            difference = np.linalg.norm(smooth[other] - smooth[frame], axis=-1)
            weight = np.where(valid[other], np.maximum(1 - (difference / cutoff) ** 2, 0) ** 2, 0)
            time = other - frame
            moments += weight * np.array([1, time, time**2])[:, None, None]
            total += weight[..., None] * normals[other]
            smooth_total += weight[..., None] * smooth[other]
            smooth_slope += (weight * time)[..., None] * smooth[other]
        mass, first, second = moments[..., None]
        mean_time = first / np.maximum(mass, 1e-9)
        # Ridge regression: without a clear trend, the mean has less noise.
        slope = (smooth_slope - mean_time * smooth_total) / (second - mean_time * first + _RIDGE)
        value = total / np.maximum(mass, 1e-9) - mean_time * slope
        length = np.linalg.norm(value, axis=-1, keepdims=True)
        out.append(np.where(valid[frame][..., None], value / np.maximum(length, 1e-9), 0).astype(np.float32))
    return np.stack(out)


def _cutoff(smooth: Float[np.ndarray, "f h w 3"], valid: Bool[np.ndarray, "f h w"]) -> float:
    """Difference of blurred maps that does not come from noise: a multiple of the median over neighboring frames."""
    differences = [
        np.linalg.norm(after - before, axis=-1)[both]
        for before, after, both in zip(smooth, smooth[1:], valid[1:] & valid[:-1])
    ]
    usual = float(np.median(np.concatenate(differences))) if differences and any(map(len, differences)) else 0.0
    return float(np.clip(_CUTOFF * usual, _LEAST_CUTOFF, _MAX_CUTOFF))


def _blurred(normals: Float[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """Mean normals over the valid pixels near each pixel; zero where there are none."""
    weight = cv2.GaussianBlur(valid.astype(np.float32), (0, 0), BLUR_PX)
    total = cv2.GaussianBlur(normals.astype(np.float32) * valid[..., None], (0, 0), BLUR_PX)
    return total / np.maximum(weight, 1e-3)[..., None]

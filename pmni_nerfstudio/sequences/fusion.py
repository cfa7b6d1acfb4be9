# SPDX-License-Identifier: Apache-2.0
"""Fusion of the normal maps of static cameras over time, where the surface did not move."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float

BLUR_PX = 2.0
"""Standard deviation in pixels of the Gaussian blur before maps are compared. It removes the noise of single pixels,
so that what differs is due to motion or to smooth bias."""
REACH = 8
"""Number of frames before and after a frame that contribute to it."""
_CUTOFF = 3.0
"""Difference of the blurred maps at which a frame no longer contributes, relative to the median difference between
neighboring frames."""
_RIDGE = 10.0
"""Ridge parameter of the slope: squared ratio of the noise of blurred maps to the change per frame of a moving
surface."""
_LEAST_CUTOFF, _MAX_CUTOFF = 0.03, 0.3
"""Bounds of the difference at which a frame no longer contributes, as the chord between unit normals."""


def fuse_over_time(
    normals: Float[np.ndarray, "f h w 3"], valid: Bool[np.ndarray, "f h w"], frames: Sequence[int] | None = None
) -> Float[np.ndarray, "g h w 3"]:
    """Fuse the normals that one static camera measured at several moments, pixel by pixel.

    Local linear regression: a line over time is fitted to the normals of each pixel, and each normal becomes the
    value of the line at its frame. The slope comes from spatially blurred maps. Other frames are weighted by Tukey's
    biweight of the difference of their blurred maps from that of the frame itself. Noise and bias that change from
    frame to frame average out where the surface stands still; where normals change slowly, the line follows them;
    where they change by more than the cutoff, other frames have no weight. Motion thus causes an error that is
    smaller than the cutoff.

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
    """Difference of blurred maps at which the weight is zero: a multiple of the median of neighboring frames."""
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

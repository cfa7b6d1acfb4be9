# SPDX-License-Identifier: Apache-2.0
"""Reduction of normal maps and masks by a whole factor, one view at a time, so that large maps are never held together."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

MAX_PIXELS = 320_000
"""Most pixels of a view that registration uses (about 612x512), where a pixel is as large as its finest voxels. Without the
limit 72 views of 2000x1500 pixels would take 15 GB."""
_PIXELS_PER_STRIP = 1 << 16
"""Pixels blurred at once, so that the working set fits the cache."""


@dataclass(frozen=True)
class Reduction:
    """Which pixels of each map are kept while a scene is read."""

    step: int
    """Every step-th pixel along each axis is kept, beginning with the first."""
    smoothed: bool = True
    """Whether normals are smoothed against aliasing before that."""

    @property
    def averages(self) -> bool:
        """Whether kept normals are averages, which are worth more than half precision."""
        return self.smoothed and self.step > 1

    def maps(
        self, normals: Float[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]
    ) -> tuple[Float[np.ndarray, "h2 w2 3"], Bool[np.ndarray, "h2 w2"]]:
        """Normals and mask of a view at 1/step of the resolution; normals are unit length where there is one, else zero."""
        if self.step == 1:
            return normals, mask
        kept = np.ascontiguousarray(mask[:: self.step, :: self.step])
        if not self.smoothed:
            return np.ascontiguousarray(normals[:: self.step, :: self.step]), kept
        return strided_blur(normals, self.step), kept


def registration_step(height: int, width: int, max_pixels: int = MAX_PIXELS) -> int:
    """Factor by which registration reduces maps of a size."""
    return max(1, round(float(np.sqrt(height * width / max_pixels))))


def blur_normals(
    normals: Float[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"], sigma_px: float
) -> Float[np.ndarray, "h w 3"]:
    """Smooth unit normals within the valid pixels by normalized convolution with a Gaussian; unit again, zero elsewhere."""
    weight = valid.astype(np.float32)
    total = cv2.GaussianBlur(normals * weight[..., None], (0, 0), sigma_px, borderType=cv2.BORDER_REPLICATE)
    # Normalizing the length replaces the division by the sum of weights.
    return _unit(total, valid)


def strided_blur(normals: Float[np.ndarray, "h w 3"], step: int) -> Float[np.ndarray, "h2 w2 3"]:
    """Every step-th pixel of `blur_normals` with a standard deviation of step / 2; the blur is computed only there.

    Args:
        normals: unit length, or zero where there is none; half or single precision.
        step: factor of the reduction; 1 leaves the normals unchanged.

    Returns:
        float32, unit length where the kept pixel has a normal, zero elsewhere.
    """
    kept = np.ascontiguousarray(normals[::step, ::step], dtype=np.float32)
    if step == 1:
        return kept
    sigma = 0.5 * step
    kernel = cv2.getGaussianKernel(round(8 * sigma + 1) | 1, sigma, cv2.CV_32F)[:, 0]  # OpenCV's size for floats
    radius = len(kernel) // 2
    height, width = normals.shape[:2]
    rows = np.empty((len(kept), width, 3), dtype=np.float32)
    columns_at_once = max(1, _PIXELS_PER_STRIP // len(kernel))
    for start in range(0, width, columns_at_once):
        part = slice(start, min(start + columns_at_once, width))
        for i, center in enumerate(range(0, height, step)):
            if center - radius >= 0 and center + radius < height:
                strip = normals[center - radius : center + radius + 1, part]
            else:
                strip = normals[np.arange(center - radius, center + radius + 1).clip(0, height - 1), part]
            rows[i, part] = np.tensordot(kernel, strip.astype(np.float32, copy=False), axes=1)
    padded = np.pad(rows, ((0, 0), (radius, radius), (0, 0)), mode="edge")
    total = np.zeros_like(kept)
    for offset, weight in enumerate(kernel):
        total += weight * padded[:, offset : offset + width : step]
    return _unit(total, kept.any(axis=-1))


def _unit(total: Float[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """Sums of normals at unit length on the valid pixels, zero elsewhere; float32."""
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.where(valid[..., None], total / np.maximum(length, 1e-12), 0).astype(np.float32)


def reduced_shape(size: np.ndarray, step: int) -> tuple[int, int]:
    """Height and width of maps of a width and height (2,) of which every step-th pixel is kept."""
    return -(-int(size[1]) // step), -(-int(size[0]) // step)

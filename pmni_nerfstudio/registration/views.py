# SPDX-License-Identifier: Apache-2.0
"""Observations that registration uses: normal maps, masks and intrinsics of the views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.data.observations import Observations
from pmni_nerfstudio.geometry.cameras import strided_intrinsics

MAX_PIXELS = 320_000
"""Most pixels of a view (about 612x512), where a pixel is as large as registration's finest voxels. Without the limit 72
views of 2000x1500 pixels would take 15 GB."""


@dataclass(frozen=True, eq=False)
class Views(Observations):
    """Observations that registration works on; normals are float32."""

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def focal(self) -> Float[np.ndarray, " n"]:
        """Mean of each view's two focal lengths, in pixels."""
        return 0.5 * (self.K[:, 0, 0] + self.K[:, 1, 1])

    def subset(self, indices: Sequence[int]) -> Views:
        """The views at the given indices, in their order; padding that none of them needs is dropped."""
        index = list(indices)
        names = tuple(self.names[i] for i in index)
        unknown = None if self.unknown is None else self.unknown[index]
        if self.sizes is None:
            return Views(names, self.normals[index], self.masks[index], self.K[index], unknown=unknown)
        sizes = self.sizes[index]
        width, height = sizes.max(axis=0)
        unknown = None if unknown is None else unknown[:, :height, :width]
        return Views(
            names,
            self.normals[index][:, :height, :width],
            self.masks[index][:, :height, :width],
            self.K[index],
            unknown=unknown if unknown is not None and unknown.any() else None,
            sizes=sizes if (sizes != sizes[0]).any() else None,
        )

    def blurred(self, sigma_px: float) -> Views:
        """Views whose normals are smoothed within their valid pixels; see `blur_normals`."""
        if sigma_px <= 0:
            return self
        normals = np.stack([blur_normals(n, m, sigma_px) for n, m in zip(self.normals, self.valid)])
        return replace(self, normals=normals)

    def downsampled(self, step: int) -> Views:
        """Views at 1/step of the resolution, with normals smoothed against aliasing."""
        return self.blurred(0.5 * step).strided(step) if step > 1 else self

    def strided(self, step: int) -> Views:
        """Every step-th pixel along each axis, without smoothing.

        Pixel centers at multiples of the step remain. Masks keep the thin parts that are sampled. Use `downsampled` for
        noisy normals.
        """
        if step == 1:
            return self
        return replace(
            self,
            normals=np.ascontiguousarray(self.normals[:, ::step, ::step]),
            masks=np.ascontiguousarray(self.masks[:, ::step, ::step]),
            unknown=None if self.unknown is None else np.ascontiguousarray(self.unknown[:, ::step, ::step]),
            sizes=None if self.sizes is None else -(-self.sizes // step),
            K=strided_intrinsics(self.K, step),
        )


def views_of_scene(scene: Observations, indices: Sequence[int] | None = None, max_pixels: int = MAX_PIXELS) -> Views:
    """Views of a scene, downsampled if they have many pixels.

    Args:
        scene: the scene, or its views of one split.
        indices: views to take; all if None.
        max_pixels: approximate largest number of pixels per view. Of views of different size, each has its own step.
    """
    index = list(range(scene.num_views) if indices is None else indices)

    def downsampled_view(i: int) -> Views:  # one at a time: all views in single precision may not fit into memory
        rows, columns = scene.frame(i)
        one = Views(
            (scene.names[i],),
            scene.normals[i : i + 1, rows, columns].astype(np.float32),
            scene.masks[i : i + 1, rows, columns],
            scene.K[[i]],
            unknown=None if scene.unknown is None else scene.unknown[i : i + 1, rows, columns],
        )
        return one.downsampled(max(1, round(float(np.sqrt(rows.stop * columns.stop / max_pixels)))))

    parts = [downsampled_view(i) for i in index]
    sizes = np.array([(part.width, part.height) for part in parts])
    largest = sizes.max(axis=0)

    def joined(maps: list[np.ndarray], padding: bool = False) -> np.ndarray:
        """Maps of all parts, padded to the largest."""
        return np.concatenate([_padded(of_part, largest, padding) for of_part in maps])

    # Padding is unknown; without padding, either no part has unknown pixels or all have such a map.
    unknown = [np.zeros_like(part.masks) if part.unknown is None else part.unknown for part in parts]
    return Views(
        names=tuple(name for part in parts for name in part.names),
        normals=joined([part.normals for part in parts]),
        masks=joined([part.masks for part in parts]),
        K=np.concatenate([part.K for part in parts]),
        unknown=joined(unknown, True) if scene.unknown is not None or (sizes != largest).any() else None,
        sizes=sizes if (sizes != largest).any() else None,
    )


def _padded(maps: np.ndarray, size: np.ndarray, value: bool) -> np.ndarray:
    """Maps (1, H, W, ...) with a value at the right and below, up to a width and height."""
    width, height = (int(side) for side in size)
    if maps.shape[1:3] == (height, width):
        return maps
    out = np.full((1, height, width, *maps.shape[3:]), value, dtype=maps.dtype)
    out[:, : maps.shape[1], : maps.shape[2]] = maps
    return out


def blur_normals(
    normals: Float[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"], sigma_px: float
) -> Float[np.ndarray, "h w 3"]:
    """Smooth unit normals within the valid pixels by normalized convolution with a Gaussian; unit again, zero elsewhere."""
    weight = valid.astype(np.float32)
    total = cv2.GaussianBlur(normals * weight[..., None], (0, 0), sigma_px, borderType=cv2.BORDER_REPLICATE)
    # Normalizing the length replaces the division by the sum of weights.
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.where(valid[..., None], total / np.maximum(length, 1e-12), 0).astype(np.float32)

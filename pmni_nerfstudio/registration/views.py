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
        """The views at the given indices, in their order."""
        index = list(indices)
        names = tuple(self.names[i] for i in index)
        unknown = None if self.unknown is None else self.unknown[index]
        return Views(names, self.normals[index], self.masks[index], self.K[index], unknown=unknown)

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
            K=strided_intrinsics(self.K, step),
        )


def views_of_scene(scene: Observations, indices: Sequence[int] | None = None, max_pixels: int = MAX_PIXELS) -> Views:
    """Views of a scene, downsampled if they have many pixels.

    Args:
        scene: the scene, or its views of one split.
        indices: views to take; all if None.
        max_pixels: approximate largest number of pixels per view.
    """
    index = list(range(scene.num_views) if indices is None else indices)
    step = max(1, round(float(np.sqrt(scene.height * scene.width / max_pixels))))

    def downsampled_view(i: int) -> Views:  # one at a time: all views in single precision may not fit into memory
        one = Views(
            (scene.names[i],),
            scene.normals[i : i + 1].astype(np.float32),
            scene.masks[i : i + 1],
            scene.K[[i]],
            unknown=None if scene.unknown is None else scene.unknown[i : i + 1],
        )
        return one.downsampled(step)

    parts = [downsampled_view(i) for i in index]
    unknown = [part.unknown for part in parts if part.unknown is not None]
    return Views(
        names=tuple(name for part in parts for name in part.names),
        normals=np.concatenate([part.normals for part in parts]),
        masks=np.concatenate([part.masks for part in parts]),
        K=np.concatenate([part.K for part in parts]),
        unknown=np.concatenate(unknown) if unknown else None,
    )


def blur_normals(
    normals: Float[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"], sigma_px: float
) -> Float[np.ndarray, "h w 3"]:
    """Smooth unit normals within the valid pixels by normalized convolution with a Gaussian; unit again, zero elsewhere."""
    weight = valid.astype(np.float32)
    total = cv2.GaussianBlur(normals * weight[..., None], (0, 0), sigma_px, borderType=cv2.BORDER_REPLICATE)
    # Normalizing the length replaces the division by the sum of weights.
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.where(valid[..., None], total / np.maximum(length, 1e-12), 0).astype(np.float32)

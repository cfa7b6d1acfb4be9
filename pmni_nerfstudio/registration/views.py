# SPDX-License-Identifier: Apache-2.0
"""Observations that registration uses: normal maps, masks and intrinsics of the views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.data.map_checks import border_share
from pmni_nerfstudio.data.observations import Observations
from pmni_nerfstudio.data.reduction import MAX_PIXELS, blur_normals, registration_step, strided_blur
from pmni_nerfstudio.geometry.cameras import strided_intrinsics


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
        return _reduced(self, range(len(self)), step) if step > 1 else self

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
    if scene.sizes is None:
        return _reduced(scene, index, registration_step(scene.height, scene.width, max_pixels))
    return _padded([_reduced_frame(scene, i, max_pixels) for i in index])


def _reduced(observed: Observations, indices: Sequence[int], step: int) -> Views:
    """Views at 1/step of the resolution, made one by one: all of them in single precision may not fit into memory."""
    index, unknown = list(indices), observed.unknown
    return Views(
        names=tuple(observed.names[i] for i in index),
        normals=np.stack([strided_blur(observed.normals[i], step) for i in index]),
        masks=np.stack([observed.masks[i][::step, ::step] for i in index]),
        K=strided_intrinsics(observed.K[index], step),
        unknown=None if unknown is None else np.stack([unknown[i][::step, ::step] for i in index]),
    )


def _reduced_frame(observed: Observations, view: int, max_pixels: int) -> Views:
    """One view without padding, reduced to about a number of pixels."""
    rows, columns = observed.frame(view)
    frame = slice(view, view + 1), rows, columns
    unknown = None if observed.unknown is None else observed.unknown[frame]
    one = Views(
        (observed.names[view],), observed.normals[frame], observed.masks[frame], observed.K[[view]], unknown=unknown
    )
    return _reduced(one, [0], registration_step(rows.stop, columns.stop, max_pixels))


def _padded(parts: Sequence[Views]) -> Views:
    """Single views together, padded at the right and below to the largest; see close_ups.py on what padding is."""
    sizes = np.array([(part.width, part.height) for part in parts])
    width, height = sizes.max(axis=0)

    def joined(maps: Sequence[np.ndarray], padding: Sequence[bool]) -> np.ndarray:
        out = np.empty((len(parts), height, width, *maps[0].shape[3:]), dtype=maps[0].dtype)
        for of_view, own, value in zip(out, maps, padding):
            of_view[...] = value
            of_view[: own.shape[1], : own.shape[2]] = own[0]
        return out

    zero = [False] * len(parts)
    unknown = [np.zeros_like(part.masks) if part.unknown is None else part.unknown for part in parts]
    all_unknown = joined(unknown, [border_share(part.masks[0]) > 0 for part in parts])
    return Views(
        names=tuple(name for part in parts for name in part.names),
        normals=joined([part.normals for part in parts], zero),
        masks=joined([part.masks for part in parts], zero),
        K=np.concatenate([part.K for part in parts]),
        unknown=all_unknown if all_unknown.any() else None,
        sizes=sizes if (sizes != sizes[0]).any() else None,
    )

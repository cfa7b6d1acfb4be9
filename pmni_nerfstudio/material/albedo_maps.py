# SPDX-License-Identifier: Apache-2.0
"""Base color of the pixels of a view under known lights, given roughness and specular layer of the surface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from pmni_nerfstudio.export.photographs import Photograph
from pmni_nerfstudio.material.estimate import Material
from pmni_nerfstudio.material.lit_views import LitView, LoadedView, Surface
from pmni_nerfstudio.material.shading import CHUNK_VALUES, Shading

_ROUNDS = 4
_SCALE = 0.1
"""Residual relative to the pixel's brightest values at which the weight of a value is halved."""
_TYPICAL_RESIDUAL = 0.05
"""Relative residual at which the confidence is halved, as in photometric stereo."""
_TINY = 1e-30
"""Lower bound of divisors in units of the image values, which may have any scale."""


def albedo_map(
    loaded: LoadedView, surface: Surface, material: Material
) -> tuple[Float32[np.ndarray, "h w 3"], Float32[np.ndarray, "h w"]]:
    """Base color of each pixel from the view's lights that reach it, by iteratively reweighted least squares.

    Args:
        loaded: the view.
        surface: the surface, whose shadows are accounted for.
        material: of the surface; its elements throw light onto the pixels.

    Returns:
        albedo: base color times the exposure; zero where it is not known.
        confidence: from 0 to 1; zero off the surface and where fewer than two lights reach it.
    """
    photographs = loaded.photographs
    hit, points, normals = loaded.pixel_points(surface)
    pixels = np.flatnonzero(hit)
    shading = Shading(loaded, surface, material, len(pixels))
    channels = photographs.stored.shape[2]
    albedo = np.zeros((photographs.num_pixels, channels), np.float32)
    confidence = np.zeros(photographs.num_pixels, np.float32)
    step = max(64, CHUNK_VALUES // len(photographs.stored))
    for start in range(0, len(pixels), step):
        part = slice(start, start + step)
        values, clipped = photographs.linear(pixels[part])
        base, layer, lit = shading.of(points[part], normals[part])
        found, trust = robust_albedo(values - layer[..., None], base, lit & ~clipped)
        albedo[pixels[part]], confidence[pixels[part]] = found, trust
    image, weight = (np.zeros((*photographs.mask.shape, *x.shape[1:]), np.float32) for x in (albedo, confidence))
    image[photographs.mask], weight[photographs.mask] = albedo, confidence
    return np.broadcast_to(image, (*photographs.mask.shape, 3)).copy(), weight


def robust_albedo(
    values: Float32[np.ndarray, "q n c"], shading: Float32[np.ndarray, "q n"], usable: np.ndarray
) -> tuple[Float32[np.ndarray, "q c"], Float32[np.ndarray, " q"]]:
    """Albedo whose product with the shading agrees with most of the usable values, and the confidence in it."""
    shading = np.where(usable, shading, 0)
    weight = usable.astype(np.float32)
    size = np.maximum(np.abs(np.where(usable[..., None], values, 0)).max(axis=(1, 2)), _TINY)[:, None]
    albedo = np.zeros((len(values), values.shape[2]), np.float32)
    residual = np.zeros_like(shading)
    for _ in range(_ROUNDS):
        scaled = weight * shading
        norm = np.maximum((scaled * shading).sum(axis=1, keepdims=True), 1e-9)
        albedo = np.matmul(scaled[:, None], values)[:, 0] / norm
        residual = np.abs(values - shading[..., None] * albedo[:, None]).max(axis=2)
        weight = usable / (1 + np.square(residual / (_SCALE * size)))
    brightness = np.maximum((weight * shading).sum(axis=1) * albedo.mean(axis=1), _TINY)
    # Bounded, because the squares of residuals of black pixels would overflow.
    relative = np.minimum((weight * residual).sum(axis=1) / brightness, 1e6)
    confidence = (usable.sum(axis=1) >= 2) / (1 + np.square(relative / _TYPICAL_RESIDUAL))
    return albedo.clip(0), confidence.astype(np.float32)


class AlbedoMaps:
    """Base color maps of views, in temporary files because all of them may not fit into memory."""

    def __init__(self, folder: Path, views: Sequence[LitView]) -> None:
        self._folder, self._views = folder, views

    def write(self, surface: Surface, material: Material) -> None:
        """Compute the maps of all views, one view at a time."""
        for index, view in enumerate(self._views):
            image, weight = albedo_map(view.load(), surface, material)
            # Image values may have any scale; base colors fit into half precision.
            base_color = (image / np.float32(material.exposure)).astype(np.float16)
            np.save(self._folder / f"{index}_color.npy", base_color)
            np.save(self._folder / f"{index}_weight.npy", weight.astype(np.float16))

    def photographs(self, without: int | None = None) -> Iterator[Photograph]:
        """The base color of each view as a photograph in linear light, one at a time.

        Args:
            without: index of a view to leave out.
        """
        for index, view in enumerate(self._views):
            if index != without:
                image = np.load(self._folder / f"{index}_color.npy").astype(np.float32)
                weight = np.load(self._folder / f"{index}_weight.npy").astype(np.float32)
                yield Photograph(image, weight, view.intrinsics_of(weight.shape), view.c2w)

# SPDX-License-Identifier: Apache-2.0
"""Test of a material: a view that is held out is rendered under its own lights and compared with its images.

The albedo of its pixels is that of the other views.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from pmni_nerfstudio.export.photographs import Photograph, srgb_from_linear
from pmni_nerfstudio.export.texture import surface_colors
from pmni_nerfstudio.geometry.cameras import strided_intrinsics
from pmni_nerfstudio.material.estimate import Material
from pmni_nerfstudio.material.lit_views import LitView, LoadedView, Surface
from pmni_nerfstudio.material.shading import CHUNK_VALUES, Shading

_MAX_PIXELS = 60_000
"""Pixels on the object that are rendered: some hundred megabytes with a hundred lights."""
_WHITE_QUANTILE = 0.998
"""Value of the photographs' pixels that is white in pictures and the peak of the signal-to-noise ratio."""
_SHIFTS = (-0.25, 0.25)
"""Positions of the rays of a pixel along x and y, from its center."""
_DIFFERENCE_END = 0.25
"""Difference of sRGB values at the end of the color scale."""


@dataclass(frozen=True, eq=False)
class Relit:
    """Comparison of a view's images with the rendered ones."""

    view: str
    image: str
    """File name of the image that the picture shows: that of the median ratio."""
    psnr_db: float
    """Peak signal-to-noise ratio of the sRGB values on the mask, over all lights."""
    psnr_worst_db: float
    """That of the worst light."""
    psnr_linear_db: float
    """Over all lights, of linear values."""
    unseen: float
    """Share of the surface in the view that no other view sees, whose albedo is filled."""
    picture: UInt8[np.ndarray, "h w 3"]
    """Photograph, rendered picture and difference, side by side, in sRGB."""


def relight(
    view: LitView,
    surface: Surface,
    material: Material,
    albedo_maps: Iterable[Photograph],
) -> Relit:
    """Render a view under each of its lights, with shadows, and compare.

    Args:
        view: the view that was held out.
        surface: the surface.
        material: of the surface, estimated without this view.
        albedo_maps: base color of the other views, in linear light.

    Raises:
        PmniError: No other view sees the surface.
    """
    loaded = _thinned(view.load())
    photographs = loaded.photographs
    # Several rays for each pixel, because pixels mix what lies on both sides of silhouettes and shadow borders.
    shifts = [(x, y) for x in _SHIFTS for y in _SHIFTS]
    parts = [loaded.pixel_points(surface, shift) for shift in shifts]
    pixels, points, normals = (
        np.concatenate(column) for column in zip(*((np.flatnonzero(hit), p, n) for hit, p, n in parts))
    )
    colors, seen = surface_colors(surface.mesh, surface.rays, points, normals, albedo_maps)
    channels = photographs.stored.shape[2]
    albedo = material.exposure * (colors if channels == 3 else colors.mean(axis=1, keepdims=True))
    truth, _ = photographs.linear(slice(None))
    rendered = np.zeros_like(truth)
    shading = Shading(loaded, surface, material, len(pixels))
    step = max(64, CHUNK_VALUES // len(photographs.stored))
    for start in range(0, len(pixels), step):
        part = slice(start, start + step)
        base, layer, _ = shading.of(points[part], normals[part])
        radiance = base[..., None] * albedo[part, None] + layer[..., None]
        np.add.at(rendered, pixels[part], radiance / len(shifts))
    white = np.quantile(truth, _WHITE_QUANTILE)
    truth, rendered = (truth / white).clip(0, 1), (rendered / white).clip(0, 1)
    truth_srgb, rendered_srgb = (srgb_from_linear(x).astype(np.float32) for x in (truth, rendered))
    errors = np.square(truth_srgb - rendered_srgb).mean(axis=(0, 2))
    shown = int(np.argsort(errors)[len(errors) // 2])
    return Relit(
        view.capture_view.name,
        view.capture_view.images[shown].name,
        _decibels(errors.mean()),
        _decibels(errors.max()),
        _decibels(np.square(truth - rendered).mean()),
        float(1 - seen.mean()),
        _picture(photographs.mask, truth_srgb[:, shown], rendered_srgb[:, shown]),
    )


def _thinned(loaded: LoadedView) -> LoadedView:
    """The view with every step-th pixel along each axis, if it has many: they suffice for a ratio and a picture."""
    photographs = loaded.photographs
    step = int(np.ceil(np.sqrt(photographs.num_pixels / _MAX_PIXELS)))
    grid = np.zeros(photographs.mask.shape, dtype=bool)
    grid[::step, ::step] = True
    kept = replace(
        photographs, stored=photographs.stored[:, grid[photographs.mask]], mask=photographs.mask[::step, ::step]
    )
    return replace(loaded, photographs=kept, K=strided_intrinsics(loaded.K, step))


def _decibels(mean_square: float) -> float:
    return float(-10 * np.log10(max(mean_square, 1e-12)))


def _picture(
    mask: np.ndarray, truth: Float32[np.ndarray, "p c"], rendered: Float32[np.ndarray, "p c"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Photograph, rendered picture and difference, cropped to the object."""
    scaled = (np.abs(truth - rendered).max(axis=1) / _DIFFERENCE_END).clip(0, 1)
    difference = cv2.applyColorMap(np.round(255 * scaled).astype(np.uint8), cv2.COLORMAP_MAGMA)[:, 0, ::-1]
    y, x = np.nonzero(mask)
    panels = []
    for values in (np.round(255 * truth), np.round(255 * rendered), difference):
        panel = np.zeros((*mask.shape, 3), np.uint8)
        panel[mask] = values
        panels.append(panel[y.min() : y.max() + 1, x.min() : x.max() + 1])
    return np.concatenate(panels, axis=1)

# SPDX-License-Identifier: Apache-2.0
"""Image values of surface elements in all views and under all lights, for the fit of the material."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.visibility import seen_points
from pmni_nerfstudio.material.interreflection import Interreflection
from pmni_nerfstudio.material.lit_views import LitView, LoadedView, Surface
from pmni_nerfstudio.material.microfacet import Cosines

SAMPLES = 300_000
"""Approximate number of image values that are used: some hundred megabytes with all data about them."""
_ELEMENTS = 500, 4000
"""Smallest and largest number of surface elements."""
_SEEN_SHARE = 0.3
"""Share of the views that typically see an element."""
_MIN_LIGHT_COSINE, _MIN_VIEW_COSINE = 0.4, 0.6
"""Smallest cosines to the normal. At grazing angles, rough surfaces deviate from Lambert's law in a way that looks
like a broad highlight, and small errors of the normals change much."""
_MIN_VALUES = 4
"""Elements with fewer values are left out."""


class LitSamples(NamedTuple):
    """Image values of surface elements, sorted by element.

    All m of them are lit and not clipped, and neither light nor camera is at a grazing angle.
    """

    element: Int[np.ndarray, " m"]
    view: Int[np.ndarray, " m"]
    light: Int[np.ndarray, " m"]
    """Index of the light in its view."""
    values: Float32[np.ndarray, "m c"]
    """Linear values over the lights' intensities."""
    strength: Float32[np.ndarray, " m"]
    """Attenuation of the light."""
    cosines: Cosines


def number_of_elements(views: Sequence[LitView], samples: int) -> int:
    """Number of surface elements that have about the given number of samples in all views together."""
    lights = float(np.mean([len(view.capture_view.lights) for view in views]))
    return int(np.clip(samples / (lights * len(views) * _SEEN_SHARE), *_ELEMENTS))


def gather_lit_samples(
    views: Sequence[LitView], surface: Surface, elements: Interreflection
) -> tuple[LitSamples, list[Float32[np.ndarray, "e n"]]]:
    """Image values of the elements of a surface; one view at a time is in memory.

    Args:
        views: views to read.
        surface: the surface, which determines what is seen and lit.
        elements: its elements.

    Returns:
        The samples, and the irradiance of all elements by the lights of each view.

    Raises:
        PmniError: No element is lit in any view, or an image is missing or broken.
    """
    parts, direct = [], []
    for index, view in enumerate(views):
        loaded = view.load()
        parts.append(_of_view(loaded, index, surface, elements))
        direct.append(elements.direct_light(loaded))
    columns = [np.concatenate(column) for column in zip(*parts)]
    enough = np.bincount(columns[0], minlength=len(elements.points)) >= _MIN_VALUES
    order = np.argsort(columns[0], kind="stable")
    order = order[enough[columns[0][order]]]
    if not len(order):
        raise PmniError("no image shows the surface in light; give a mesh and poses of this capture, in the same world")
    columns = [column[order] for column in columns]
    return LitSamples(*columns[:5], Cosines(*columns[5:])), direct


def _of_view(loaded: LoadedView, index: int, surface: Surface, elements: Interreflection) -> tuple[np.ndarray, ...]:
    """Columns of `LitSamples` for one view."""
    mask = loaded.photographs.mask
    element, pixels, _ = seen_points(
        elements.points, elements.normals, mask, loaded.K, loaded.view.c2w, surface.rays, surface.offset
    )
    values, clipped = interpolated_values(loaded, pixels)
    cosines, strength = loaded.incidence(surface, elements.points[element], elements.normals[element])
    usable = (strength > 0) & ~clipped & (cosines.light > _MIN_LIGHT_COSINE) & (cosines.view > _MIN_VIEW_COSINE)
    row, light = np.nonzero(usable)
    views = np.full(len(row), index)
    return element[row], views, light, values[usable], strength[usable], *(cosine[usable] for cosine in cosines)


def interpolated_values(
    loaded: LoadedView, pixels: Float[np.ndarray, "2 q"]
) -> tuple[Float32[np.ndarray, "q n c"], Bool[np.ndarray, "q n"]]:
    """Bilinear values over the intensities at rows and columns inside the mask, and whether they are clipped.

    `geometry.interpolation` needs whole images; here only the pixels of the mask are stored, for all lights at once.
    """
    mask = loaded.photographs.mask
    place = np.zeros(mask.shape, np.int64)
    place[mask] = np.arange(loaded.photographs.num_pixels)
    low = np.floor(pixels).astype(int).clip(0, np.array(mask.shape)[:, None] - 2)
    row, column = (pixels - low).astype(np.float32)
    values, clipped = np.float32(0), np.zeros((1, 1), dtype=bool)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (row if i else 1 - row) * (column if j else 1 - column)
        part, over = loaded.photographs.linear(place[low[0] + i, low[1] + j])
        values = values + weight[:, None, None] * part
        clipped = clipped | over
    return np.asarray(values, dtype=np.float32), clipped

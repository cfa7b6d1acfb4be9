# SPDX-License-Identifier: Apache-2.0
"""Image values of points on a surface in all views and under all lights, for the fit of the material."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.visibility import seen_points
from pmni_nerfstudio.material.fit import LitSamples
from pmni_nerfstudio.material.lit_views import LitView, LoadedView, Surface
from pmni_nerfstudio.material.microfacet import Cosines

_SAMPLES = 600_000
"""Image values that are used at most, about: some hundred megabytes with all that belongs to them."""
_POINTS = 300, 4000
_SEEN_SHARE = 0.3
"""Share of the views that typically see a point."""
_MIN_LIGHT_COSINE = 0.1
"""Grazing light, of which small errors of the normals change much, is left out."""
_MIN_VALUES = 4
"""Points with fewer values per unknown are left out."""


def gather_lit_samples(views: Sequence[LitView], surface: Surface, seed: int = 0) -> LitSamples:
    """Image values of random points on the surface; one view at a time is in memory.

    Args:
        views: views to read.
        surface: the surface, which determines what is seen and lit.
        seed: seed of the points.

    Raises:
        PmniError: No point is lit in any view, or an image is missing or broken.
    """
    lights = float(np.mean([len(view.capture_view.lights) for view in views]))
    count = int(np.clip(_SAMPLES / (lights * len(views) * _SEEN_SHARE), *_POINTS))
    points = np.asarray(surface.mesh.sample(count, seed=seed))
    hits = surface.rays.closest_hits(points)
    normals = hits.interpolate(
        np.ones(count, dtype=bool), np.asarray(surface.mesh.faces), np.asarray(surface.mesh.vertex_normals)
    )
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    found = [_of_view(view.load(), surface, points, normals) for view in views]
    index = np.concatenate([part[0] for part in found])
    enough = np.bincount(index, minlength=count) >= _MIN_VALUES
    order = np.argsort(index, kind="stable")
    order = order[enough[index[order]]]
    if not len(order):
        raise PmniError("no image shows the surface in light; give a mesh and poses of this capture, in the same world")
    values, strength = (np.concatenate([part[i] for part in found])[order] for i in (1, 3))
    cosines = Cosines(*(np.concatenate([part[2][i] for part in found])[order] for i in range(4)))
    return LitSamples(np.unique(index[order], return_inverse=True)[1].reshape(-1), values, cosines, strength)


def _of_view(
    loaded: LoadedView, surface: Surface, points: Float[np.ndarray, "p 3"], normals: Float[np.ndarray, "p 3"]
) -> tuple[np.ndarray, np.ndarray, Cosines, np.ndarray]:
    """Index of the point, values, cosines and strength of the light of what one view sees under its lights."""
    mask = loaded.photographs.mask
    index, pixels, _ = seen_points(points, normals, mask, loaded.K, loaded.view.c2w, surface.rays, surface.offset)
    values, clipped = interpolated_values(loaded, pixels)
    cosines, strength = loaded.incidence(surface, points[index], normals[index])
    usable = (strength > 0) & ~clipped & (cosines.light > _MIN_LIGHT_COSINE)
    chosen = Cosines(*(np.broadcast_to(cosine, usable.shape)[usable] for cosine in cosines))
    return index[np.nonzero(usable)[0]], values[usable], chosen, strength[usable]


def interpolated_values(
    loaded: LoadedView, pixels: Float[np.ndarray, "2 q"]
) -> tuple[Float32[np.ndarray, "q n c"], Bool[np.ndarray, "q n"]]:
    """Bilinear values over the intensities at rows and columns inside the mask, and whether they are clipped."""
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

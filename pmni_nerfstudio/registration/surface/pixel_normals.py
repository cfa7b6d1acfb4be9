# SPDX-License-Identifier: Apache-2.0
"""Normals observed by single pixels at the points where their rays meet the surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.registration.bundle_adjustment.normal_lookup import INTERIOR, WEIGHT
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.views import Views

MAX_PIXELS = 300_000
"""Approximate number of pixels of all views from which on they are thinned out evenly."""


@dataclass(frozen=True, eq=False)
class PixelNormals:
    """Normals of pixels, each at its own point of the surface."""

    points: Float[np.ndarray, "p 3"]
    """First intersection of each pixel's ray with the surface, world coordinates."""
    normals: Float[np.ndarray, "p 3"]
    """Observed unit normals, world axes."""
    weights: Float[np.ndarray, " p"]
    """Confidence, 0 to 1: low at the silhouette and where the normal map bends within a pixel."""

    @staticmethod
    def from_views(
        views: Views,
        channels: list[Float[Tensor, "11 h w"]],
        poses: Poses,
        depths: Float[np.ndarray, "n h w"],
        max_pixels: int = MAX_PIXELS,
    ) -> PixelNormals:
        """The pixels with a normal whose rays meet the surface.

        Args:
            views: views with normals and intrinsics.
            channels: `lookup_channels` of the views.
            poses: their poses.
            depths: depth maps of the surface, infinite where a ray misses it.
            max_pixels: approximate number of pixels that are returned at most.
        """
        stride = max(1, int(views.valid.sum()) // max_pixels)
        points, normals, weights = [], [], []
        for i, valid in enumerate(views.valid):
            y, x = np.nonzero(valid & np.isfinite(depths[i]))
            y, x = y[::stride], x[::stride]
            camera = pixel_directions(views.K[i], np.stack([x, y], axis=1)) * depths[i, y, x, None]
            points.append((camera - poses.t[i]) @ poses.R[i])
            normals.append(views.normals[i, y, x].astype(np.float64) @ poses.R[i])
            weights.append((channels[i][INTERIOR, y, x] * channels[i][WEIGHT, y, x]).numpy().astype(np.float64))
        return PixelNormals(np.concatenate(points), np.concatenate(normals), np.concatenate(weights))

# SPDX-License-Identifier: Apache-2.0
"""Normals at single pixels of the views, placed where their rays meet a surface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.registration.bundle_adjustment.normal_lookup import INTERIOR, WEIGHT, eroded
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.views import Views

MAX_PIXELS = 1_500_000
"""Pixels beyond which some are left out: more than a grid of 200 vertices per axis can follow."""


@dataclass(frozen=True, eq=False)
class PixelNormals:
    """Observed normals of single pixels at their points on the surface."""

    points: Float[np.ndarray, "p 3"]
    """World positions."""
    normals: Float[np.ndarray, "p 3"]
    """Observed unit normals, world axes."""
    weights: Float[np.ndarray, " p"]
    """Confidence, 0 to 1."""

    @staticmethod
    def from_views(
        views: Views,
        weights: Sequence[Float[np.ndarray, "h w"]],
        poses: Poses,
        depths: Float[np.ndarray, "n h w"],
        max_pixels: int = MAX_PIXELS,
    ) -> PixelNormals:
        """The pixels with a normal whose rays meet the surface.

        Args:
            views: views with normals and intrinsics.
            weights: confidence of each view's pixels, `smooth_weights` or `edge_weights`.
            poses: poses of the views.
            depths: depth maps of the surface, infinite where a ray misses it.
            max_pixels: approximate number of pixels that are returned at most.
        """
        stride = max(1, int(views.valid.sum()) // max_pixels)
        points, normals, chosen = [], [], []
        for i, valid in enumerate(views.valid):
            y, x = np.nonzero(valid & np.isfinite(depths[i]))
            y, x = y[i % stride :: stride], x[i % stride :: stride]
            camera = pixel_directions(views.K[i], np.stack([x, y], axis=1)) * depths[i, y, x, None]
            points.append((camera - poses.t[i]) @ poses.R[i])
            normals.append(views.normals[i, y, x].astype(np.float64) @ poses.R[i])
            chosen.append(weights[i][y, x].astype(np.float64))
        return PixelNormals(np.concatenate(points), np.concatenate(normals), np.concatenate(chosen))


def smooth_weights(channels: Sequence[Float[Tensor, "11 h w"]]) -> list[Float[np.ndarray, "h w"]]:
    """Weights that are low at the silhouette and where the normal map bends within a pixel, from `lookup_channels`."""
    return [(of_view[INTERIOR] * of_view[WEIGHT]).numpy() for of_view in channels]


def edge_weights(views: Views, curvature: float) -> list[Float[np.ndarray, "h w"]]:
    """Weights that are low at the silhouette and where a pixel may mix several orientations.

    The weight is curvature^2 / (curvature^2 + c^2), where c is how much the map bends at the pixel. The second difference
    of the normals, which `smooth_weights` uses, rejects both pixels beside a sharp edge, although a normal that equals a
    neighbor's belongs to one face. Without them nothing tells where between the faces the edge is, and how high one face is
    above the other. Here c is the smaller of the second difference and of the difference to the more similar neighbor along
    each axis: a pixel that mixes two faces differs from its neighbors on both sides.

    Args:
        views: normals and masks.
        curvature: bending, in radians, at which the weight is 1/2.

    Returns:
        Weights of each view's pixels; zero for those without two neighbors with a normal along an axis, on the mask.
    """
    out = []
    for normals, valid, inner in zip(views.normals, views.valid, eroded(views.masks)):
        smaller, second = np.zeros(valid.shape, np.float32), np.zeros(valid.shape, np.float32)
        for axis in (0, 1):
            n, known = np.moveaxis(normals, axis, 0), np.moveaxis(valid, axis, 0)
            # Squared differences to the next pixel; infinite beyond both ends and where there is no such normal.
            step = np.full((len(n) + 1, n.shape[1]), np.inf, np.float32)
            step[1:-1] = np.where(known[1:] & known[:-1], np.square(n[1:] - n[:-1]).sum(axis=-1), np.inf)
            bend = np.full(known.shape, np.inf, np.float32)
            bend[1:-1] = np.square(n[2:] + n[:-2] - 2 * n[1:-1]).sum(axis=-1)
            bend[np.isinf(np.maximum(step[1:], step[:-1]))] = np.inf
            smaller += np.moveaxis(np.minimum(step[1:], step[:-1]), 0, axis)
            second += np.moveaxis(bend, 0, axis)
        out.append(inner * curvature**2 / (curvature**2 + np.minimum(smaller, second)))
    return out

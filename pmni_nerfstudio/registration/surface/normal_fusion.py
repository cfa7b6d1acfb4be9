# SPDX-License-Identifier: Apache-2.0
"""World normals at points near the surface: what the views that see them say, averaged."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pmni_nerfstudio.geometry.cameras import project
from pmni_nerfstudio.geometry.interpolation import lookup, nearest
from pmni_nerfstudio.registration.bundle_adjustment.normal_lookup import (
    INTERIOR,
    WEIGHT,
    WITHOUT_DERIVATIVES,
    unit_normals,
)
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views


def fuse_normals(
    views: Views,
    channels: list[Float[Tensor, "11 h w"]],
    poses: Poses,
    surface: Surface,
    depths: Float[np.ndarray, "n h w"],
    points: Float[np.ndarray, "m 3"],
    sdf: Float[np.ndarray, " m"],
) -> tuple[Float[np.ndarray, "m 3"], Float[np.ndarray, " m"]]:
    """Normals that the views give for points near the surface, looked up at each point's nearest surface point.

    A view counts by the cosine at which it sees the surface; pixels at the outline, which mix with what is behind, and
    those whose normal bends, count down to a tenth. Where no view looks, the surface keeps its own normal, at a low
    weight. `channels` are the views' `lookup_channels`.

    Returns:
        normals (m, 3) in the world, and weights (m,) from .05 (unseen) to 1.
    """
    own = surface.normals_at(points)
    on_surface = points - sdf[:, None] * own
    total, weight_sum = np.zeros((len(points), 3)), np.zeros(len(points))
    for i, maps in enumerate(channels):
        camera = poses.to_camera(i, on_surface)
        pixels = project(camera, views.K[i])
        row, column, inside = nearest(pixels, views.width, views.height)
        to_view = -camera / np.linalg.norm(camera, axis=1, keepdims=True)
        facing = (own @ poses.R[i].T * to_view).sum(axis=1)
        near = np.abs(camera[:, 2] - depths[i, row, column]) < 1.5 * surface.voxel
        seen = np.flatnonzero(inside & near & (facing > 0.05) & views.masks[i, row, column])
        looked_up = lookup(maps[WITHOUT_DERIVATIVES], pixels[seen]).astype(np.float64)
        normals, _ = unit_normals(looked_up)
        believed = looked_up[:, INTERIOR] * looked_up[:, WEIGHT]
        cosine = (normals * to_view[seen]).sum(axis=1).clip(0, 1)
        weight = cosine * (0.1 + 0.9 * believed) * facing[seen].clip(0, 1)
        total[seen] += weight[:, None] * (normals @ poses.R[i])
        weight_sum[seen] += weight
    known = weight_sum > 0.015
    mean = total / np.maximum(weight_sum, 1e-6)[:, None]
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    # Where views contradict each other their mean is short, and stays so.
    normals = np.where(known[:, None], mean / np.maximum(length, 0.2), own)
    return normals, np.where(known, weight_sum.clip(0.1, 1.0), 0.05)

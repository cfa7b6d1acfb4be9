# SPDX-License-Identifier: Apache-2.0
"""Fusion of normal maps: world normals near the surface, averaged over the views that see them."""

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
    """Average the observed normals at points near the surface, looked up at each point's closest surface point.

    Views are weighted by the cosine between surface normal and viewing direction. Pixels at the silhouette, which mix
    object and background, and pixels of high curvature are down-weighted to as little as a tenth. Points that no view
    sees get the surface's own normal at a low weight.

    Args:
        views: views with masks and intrinsics.
        channels: `lookup_channels` of the views.
        poses: poses of the views.
        surface: current surface.
        depths: depth maps of the surface, `Surface.depths`.
        points: world points in a band around the surface.
        sdf: signed distances of the points.

    Returns:
        normals: in world axes; shorter than one where views disagree.
        weights: from 0.05 (unseen) to 1.
    """
    surface_normals = surface.normals_at(points)
    on_surface = points - sdf[:, None] * surface_normals
    total, weight_sum = np.zeros((len(points), 3)), np.zeros(len(points))
    for i, maps in enumerate(channels):
        camera = poses.to_camera(i, on_surface)
        pixels = project(camera, views.K[i])
        row, column, inside = nearest(pixels, views.width, views.height)
        to_view = -camera / np.linalg.norm(camera, axis=1, keepdims=True)
        facing = (surface_normals @ poses.R[i].T * to_view).sum(axis=1)
        near = np.abs(camera[:, 2] - depths[i, row, column]) < 1.5 * surface.voxel
        seen = np.flatnonzero(inside & near & (facing > 0.05) & views.valid[i, row, column])
        looked_up = lookup(maps[WITHOUT_DERIVATIVES], pixels[seen]).astype(np.float64)
        normals, _ = unit_normals(looked_up)
        confidence = looked_up[:, INTERIOR] * looked_up[:, WEIGHT]
        cosine = (normals * to_view[seen]).sum(axis=1).clip(0, 1)
        weight = cosine * (0.1 + 0.9 * confidence) * facing[seen].clip(0, 1)
        total[seen] += weight[:, None] * (normals @ poses.R[i])
        weight_sum[seen] += weight
    known = weight_sum > 0.015
    mean = total / np.maximum(weight_sum, 1e-6)[:, None]
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    # Where views disagree their mean is short and is not scaled to unit length.
    normals = np.where(known[:, None], mean / np.maximum(length, 0.2), surface_normals)
    return normals, np.where(known, weight_sum.clip(0.1, 1.0), 0.05)

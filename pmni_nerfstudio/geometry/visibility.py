# SPDX-License-Identifier: Apache-2.0
"""Visibility of surface points in a view: occlusion, grazing angles and depth discontinuities."""

from __future__ import annotations

import cv2
import numpy as np
import trimesh
from jaxtyping import Bool, Float, Int

from pmni_nerfstudio.geometry.cameras import pixel_rays, project
from pmni_nerfstudio.geometry.ray_casting import RayCaster

MIN_COSINE = 0.1
"""Least cosine between normal and viewing direction; at smaller angles to the surface a pixel covers many points."""

MAX_DEPTH_STEP = 12.0
"""Largest difference in depth between neighboring pixels, in pixel widths; more is a depth discontinuity."""

DEPTH_TOLERANCE = 1e-3
"""Distance in front of a point at which a hit does not count as occlusion, as a fraction of the mesh's diagonal."""


def depth_tolerance(mesh: trimesh.Trimesh) -> float:
    """DEPTH_TOLERANCE in the mesh's units."""
    return DEPTH_TOLERANCE * float(np.linalg.norm(mesh.extents))


def seen_points(
    points: Float[np.ndarray, "P 3"],
    normals: Float[np.ndarray, "P 3"],
    mask: Bool[np.ndarray, "H W"],
    K: Float[np.ndarray, "3 3"],
    c2w: Float[np.ndarray, "4 4"],
    rays: RayCaster,
    tolerance: float,
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "2 n"], Float[np.ndarray, "n"]]:
    """Select the surface points that a view sees well.

    A point is kept if it faces the camera, is the first hit of its ray, and lies away from silhouettes and depth
    discontinuities, where pixels mix two surfaces.

    Args:
        points: points on the surface, in its world.
        normals: unit outward normals of the points.
        mask: the object's mask in the view.
        K: intrinsics of the view, pixel centers at integers.
        c2w: pose of the view in the surface's world, OpenCV axes.
        rays: ray caster of the surface.
        tolerance: distance in front of a point at which a hit does not count as occlusion; see `depth_tolerance`.

    Returns:
        index: indices of the points that are seen.
        pixels: row and column of their projections.
        cosine: cosine between normal and direction to the camera.
    """
    height, width = mask.shape
    camera = (points - c2w[:3, 3]) @ c2w[:3, :3]
    distance = np.linalg.norm(camera, axis=1)
    to_camera = (c2w[:3, 3] - points) / distance[:, None]
    cosine = (to_camera * normals).sum(axis=1)
    index = np.flatnonzero((cosine > MIN_COSINE) & (camera[:, 2] > 0))
    column, row = project(camera[index], K).T
    inside = (row >= 0) & (row <= height - 1) & (column >= 0) & (column <= width - 1)
    index, row, column = index[inside], row[inside], column[inside]
    continuous = _continuous_pixels(mask, K, c2w, rays)
    hit = rays.cast(np.broadcast_to(c2w[:3, 3], (len(index), 3)), -to_camera[index]).distance
    kept = continuous[np.round(row).astype(int), np.round(column).astype(int)] & (hit >= distance[index] - tolerance)
    return index[kept], np.stack([row[kept], column[kept]]), cosine[index[kept]]


def _continuous_pixels(
    mask: Bool[np.ndarray, "H W"], K: Float[np.ndarray, "3 3"], c2w: Float[np.ndarray, "4 4"], rays: RayCaster
) -> Bool[np.ndarray, "H W"]:
    """Pixels whose 3x3 neighborhood lies on the mask and has no depth discontinuity."""
    height, width = mask.shape
    depth = rays.cast(*pixel_rays(K, c2w, width, height)).distance.reshape(height, width)
    neighborhood = np.ones((3, 3), np.uint8)
    on_surface = cv2.erode((mask & np.isfinite(depth)).astype(np.uint8), neighborhood) > 0
    depth[~np.isfinite(depth)] = 0
    step = cv2.dilate(depth, neighborhood) - cv2.erode(depth, neighborhood)
    return on_surface & (step < MAX_DEPTH_STEP * depth / K[0, 0])

# SPDX-License-Identifier: Apache-2.0
"""Which points of a surface a view shows well enough to say something about them."""

from __future__ import annotations

import cv2
import numpy as np
import trimesh
from jaxtyping import Bool, Float, Int

from pmni_nerfstudio.geometry.cameras import pixel_rays
from pmni_nerfstudio.geometry.ray_casting import RayCaster

LEAST_COSINE = 0.1
"""A surface seen flatter than this isn't seen well: its pixels smear over many points."""

LARGEST_SLOPE = 12.0
"""Neighbouring pixels that differ in depth by more than so many pixels' widths are on two sides of an outline."""

DEPTH_TOLERANCE = 1e-3
"""How far before a point its ray may meet the surface and still see it, in parts of the mesh's diagonal."""


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
    """Points on a surface that a view shows: not too flat, first on their ray, and off every outline, where pixels mix.

    Args:
        points: on the surface, in its world.
        normals: unit, outward.
        mask: the object's, in the view.
        K: of the view, pixel centres at integers.
        c2w: its pose in the surface's world, OpenCV axes.
        rays: of the surface.
        tolerance: how far before a point its ray may meet the surface and still see it.

    Returns:
        Their indices, where they are seen (rows and columns), and the cosines between normal and way to the camera.
    """
    height, width = mask.shape
    local = (points - c2w[:3, 3]) @ c2w[:3, :3]
    distance = np.linalg.norm(local, axis=1)
    towards = (c2w[:3, 3] - points) / distance[:, None]
    cosine = (towards * normals).sum(axis=1)
    index = np.flatnonzero((cosine > LEAST_COSINE) & (local[:, 2] > 0))
    homogeneous = local[index] @ K.T
    column, row = homogeneous[:, 0] / homogeneous[:, 2], homogeneous[:, 1] / homogeneous[:, 2]
    inside = (row >= 0) & (row <= height - 1) & (column >= 0) & (column <= width - 1)
    index, row, column = index[inside], row[inside], column[inside]
    core = _off_outlines(mask, K, c2w, rays)
    met = rays.cast(np.broadcast_to(c2w[:3, 3], (len(index), 3)), -towards[index]).distance
    kept = core[np.round(row).astype(int), np.round(column).astype(int)] & (met >= distance[index] - tolerance)
    return index[kept], np.stack([row[kept], column[kept]]), cosine[index[kept]]


def _off_outlines(
    mask: Bool[np.ndarray, "H W"], K: Float[np.ndarray, "3 3"], c2w: Float[np.ndarray, "4 4"], rays: RayCaster
) -> Bool[np.ndarray, "H W"]:
    """Pixels that lie with all their neighbours on one piece of surface."""
    height, width = mask.shape
    depth = rays.cast(*pixel_rays(K, c2w, width, height)).distance.reshape(height, width)
    around = np.ones((3, 3), np.uint8)
    on = cv2.erode((mask & np.isfinite(depth)).astype(np.uint8), around) > 0
    depth[~np.isfinite(depth)] = 0
    jump = cv2.dilate(depth, around) - cv2.erode(depth, around)
    return on & (jump < LARGEST_SLOPE * depth / K[0, 0])

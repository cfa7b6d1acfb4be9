# SPDX-License-Identifier: Apache-2.0
"""Framing of the object: cameras centered on it, a world whose unit sphere holds it, and the world of the result."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from pmni_nerfstudio.geometry.camera_rings import OBJECT_RADIUS
from pmni_nerfstudio.geometry.hull import hull_distance, mask_distances
from pmni_nerfstudio.geometry.interpolation import grid_points
from pmni_nerfstudio.geometry.object_sphere import centroid_rays
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_HULL_RESOLUTION = 49
_MAX_RADIUS = 0.97
"""Largest distance of the registered surface from the origin of the unit-sphere world."""


def center_on_masks(views: Views, poses: Poses) -> Poses:
    """Translate each camera so that the world's origin projects to its mask's centroid, at unchanged depth."""
    return Poses(poses.R, poses.t[:, 2:] * centroid_rays(views.K, views.masks))


def frame_object(views: Views, poses: Poses, votes: int) -> Poses:
    """Center the world on the object, and scale it down where the object exceeds the unit sphere.

    The center is first the point nearest to the rays through the masks' centroids, then the center of the visual hull's
    bounding box.

    Args:
        views: the masks.
        poses: poses in a world of about the right scale; the object may be anywhere.
        votes: votes of the visual hull (see `visual_hull`).
    """
    rays = centroid_rays(views.K, views.masks)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    across = np.eye(3) - rays[:, :, None] * rays[:, None, :]
    rows, right = across @ poses.R, np.einsum("nij,nj->ni", across, -poses.t)
    center = np.linalg.lstsq(rows.reshape(-1, 3), right.ravel(), rcond=None)[0]
    poses = poses.transformed(1.0, np.eye(3), -center)
    grid = grid_points(_HULL_RESOLUTION).reshape(-1, 3).numpy()
    distances = mask_distances(views.possible)
    for _ in range(3):
        hull = hull_distance(1.3 * grid, distances, views.K, poses.c2w(), votes)
        inside = 1.3 * grid[hull < 0]
        if not len(inside):
            return poses
        middle = 0.5 * (inside.min(axis=0) + inside.max(axis=0))
        radius = float(np.linalg.norm(inside - middle, axis=1).max())
        # Views from one side leave a hull that is far too deep: limit how much it shrinks the world.
        scale = min(1.0, max(OBJECT_RADIUS / radius, 0.5))
        poses = poses.transformed(scale, np.eye(3), -scale * middle)
    return poses


def in_reference_frame(
    poses: Poses, surface: Surface, reference: Poses, trusted: Bool[np.ndarray, " n"]
) -> tuple[Poses, Surface]:
    """Move poses and surface to the world of the reference poses, by the best similarity over the trusted views.

    A surface that would leave the unit sphere there is shrunk and shifted by as little as keeps it inside.
    """
    index = np.flatnonzero(trusted)
    scale, rotation, shift = align(poses.subset(index), reference.subset(index))
    vertices = scale * surface.mesh[0] @ rotation.T + shift
    middle = 0.5 * (vertices.min(axis=0) + vertices.max(axis=0))
    radius, offset = float(np.linalg.norm(vertices - middle, axis=1).max()), float(np.linalg.norm(middle))
    if radius + offset > _MAX_RADIUS:
        shrink = min(1.0, _MAX_RADIUS / radius)
        kept = max(_MAX_RADIUS - shrink * radius, 0.0) / max(offset, 1e-9)
        scale, shift = shrink * scale, shrink * (shift - middle) + min(kept, 1.0) * middle
    return poses.transformed(scale, rotation, shift), surface.transformed(scale, rotation, shift)

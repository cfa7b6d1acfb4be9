# SPDX-License-Identifier: Apache-2.0
"""The sphere that holds the object, in the data's world: from a mesh, or from the masks' visual hull."""

from __future__ import annotations

import numpy as np

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.camera_rings import OBJECT_RADIUS
from pmni_nerfstudio.geometry.hull import hull_distance, mask_distances
from pmni_nerfstudio.geometry.interpolation import grid_points
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.registration.framing import centroid_rays
from pmni_nerfstudio.registration.views import Views

_RESOLUTION = 65
_MANY = 8
"""Of so many views one may have a bad mask."""


def sphere_of_points(points: np.ndarray) -> np.ndarray:
    """Similarity (4, 4) from the unit sphere to the world of points (P, 3), which fill .92 of its radius."""
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    return _similarity(middle, float(np.linalg.norm(points - middle, axis=1).max()))


def sphere_of_masks(views: Views, c2w: np.ndarray) -> np.ndarray:
    """Similarity (4, 4) from the unit sphere to the world, so that it holds the visual hull of the masks.

    Cameras from one side leave a hull that is all depth: then the sphere is as large as the masks are wide.

    Args:
        views: the masks and intrinsics.
        c2w: (N, 4, 4) rigid, camera to the data's world, OpenCV axes.

    Raises:
        PmniError: the masks' lines of sight meet nowhere in front of the cameras, or miss each other.
    """
    rays = centroid_rays(views)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    directions = np.einsum("nij,nj->ni", c2w[:, :3, :3], rays)
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    # The point nearest to all lines; the small pull to the cameras' middle decides what parallel lines leave open.
    cameras = c2w[:, :3, 3]
    spread = 1e-9 * len(views)
    system = across.sum(axis=0) + spread * np.eye(3)
    centre = np.linalg.solve(system, np.einsum("nij,nj->i", across, cameras) + spread * cameras.mean(axis=0))
    depth = np.einsum("ni,ni->n", centre - cameras, c2w[:, :3, 2])
    if (depth <= 0).any():
        view = views.names[int(depth.argmin())]
        raise PmniError(
            f"view {view}: looks away from where the others see the object: its camera is wrong, or poses are stored "
            "the other way round (world to camera)"
        )
    radius = max(_width(views, view, depth[view]) for view in range(len(views)))
    similarity = _similarity(centre, radius)
    distances = mask_distances(views.masks)
    grid = grid_points(_RESOLUTION).reshape(-1, 3).numpy()
    votes = 2 if len(views) >= _MANY else 1
    for _ in range(3):
        unit = transform_poses(np.linalg.inv(similarity), c2w)
        # A grid point may be next to the hull and no point inside.
        slack = np.sqrt(3) / (_RESOLUTION - 1)
        inside = grid[(hull_distance(grid, distances, views.K, unit, votes) < slack) & ((grid**2).sum(axis=1) <= 1)]
        if not len(inside):
            raise PmniError(
                "the masks miss each other: no point of the world is on the object in all of them: check that cameras "
                "and masks belong together, and which way round poses are stored"
            )
        similarity = similarity @ sphere_of_points(inside)
    return similarity


def _similarity(middle: np.ndarray, radius: float) -> np.ndarray:
    similarity = np.diag([radius / OBJECT_RADIUS] * 3 + [1.0])
    similarity[:3, 3] = middle
    return similarity


def _width(views: Views, view: int, depth: float) -> float:
    """Radius, at this depth, of the mask about its centroid."""
    y, x = np.nonzero(views.masks[view])
    rays = np.linalg.solve(views.K[view], np.stack([x, y, np.ones_like(x)])).T[:, :2]
    return float(np.linalg.norm(rays - rays.mean(axis=0), axis=1).max() * depth)

# SPDX-License-Identifier: Apache-2.0
"""Where the object is: cameras turned to it, and a world whose unit sphere holds it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.geometry.camera_rings import OBJECT_RADIUS
from pmni_nerfstudio.geometry.hull import hull_distance, mask_distances
from pmni_nerfstudio.geometry.interpolation import grid_points
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.views import Views

_RESOLUTION = 49


def centroid_rays(views: Views) -> Float[np.ndarray, "n 3"]:
    """Camera points at depth 1 through the masks' centroids, OpenCV axes."""
    rays = np.empty((len(views), 3))
    for i, mask in enumerate(views.masks):
        y, x = np.nonzero(mask)
        rays[i] = np.linalg.solve(views.K[i], [x.mean(), y.mean(), 1.0])
    return rays


def centre_on_masks(views: Views, poses: Poses) -> Poses:
    """Shift each camera sideways until the world's origin is at its mask's centroid; the depth stays."""
    return Poses(poses.R, poses.t[:, 2:] * centroid_rays(views))


def frame_object(views: Views, poses: Poses, votes: int) -> Poses:
    """The same cameras in a world whose origin is in the middle of the object, shrunk if it is too large for [-1, 1]^3.

    The rays through the masks' centroids meet near the object's middle; about there the visual hull's box gives it.

    Args:
        views: the masks.
        poses: in a world of about the right scale, the object anywhere.
        votes: of the hull (see `visual_hull`).
    """
    rays = centroid_rays(views)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    across = np.eye(3) - rays[:, :, None] * rays[:, None, :]
    # The world point whose camera places are nearest to the rays.
    rows, right = across @ poses.R, np.einsum("nij,nj->ni", across, -poses.t)
    centre = np.linalg.lstsq(rows.reshape(-1, 3), right.ravel(), rcond=None)[0]
    poses = poses.transformed(1.0, np.eye(3), -centre)
    grid = grid_points(_RESOLUTION).reshape(-1, 3).numpy()
    distances = mask_distances(views.masks)
    for _ in range(3):
        hull = hull_distance(1.3 * grid, distances, views.K, poses.c2w(), votes)
        inside = 1.3 * grid[hull < 0]
        if not len(inside):
            return poses
        middle = 0.5 * (inside.min(axis=0) + inside.max(axis=0))
        radius = float(np.linalg.norm(inside - middle, axis=1).max())
        scale = min(1.0, max(OBJECT_RADIUS / radius, 0.5))  # views from one side leave a hull that is all depth
        poses = poses.transformed(scale, np.eye(3), -scale * middle)
    return poses

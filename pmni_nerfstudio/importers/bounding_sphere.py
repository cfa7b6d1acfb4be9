# SPDX-License-Identifier: Apache-2.0
"""Bounding sphere of the object in the source's world, from a mesh or from the visual hull of the masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.camera_rings import radius_at_depth_1
from pmni_nerfstudio.geometry.hull import hull_distance, mask_distances
from pmni_nerfstudio.geometry.interpolation import grid_points
from pmni_nerfstudio.geometry.object_sphere import centroid_rays, nearest_point, sphere_similarity
from pmni_nerfstudio.geometry.transforms import transform_poses

_RESOLUTION = 65
"""Points along each side of the grid on which the visual hull is sampled."""
_MIN_VIEWS_FOR_OUTLIER = 8
"""Smallest number of views for which one bad mask is tolerated."""


def sphere_of_points(points: np.ndarray) -> np.ndarray:
    """Similarity (4, 4) from the unit sphere to the world of points (P, 3), which fill its radius up to OBJECT_RADIUS."""
    center = (points.min(axis=0) + points.max(axis=0)) / 2
    return sphere_similarity(center, float(np.linalg.norm(points - center, axis=1).max()))


def sphere_of_masks(names: Sequence[str], masks: np.ndarray, K: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """Similarity (4, 4) from the unit sphere to the world such that the sphere holds the visual hull of the masks.

    Cameras on one side of the object leave the hull unbounded in depth; the sphere is then as large as the masks are wide.

    Args:
        names: names of the N views, for messages.
        masks: (N, H, W).
        K: (N, 3, 3).
        c2w: rigid camera-to-world poses (N, 4, 4), OpenCV axes.

    Raises:
        PmniError: The rays through the masks' centroids do not meet in front of the cameras, or the hull is empty.
    """
    rays = centroid_rays(K, masks)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    cameras = c2w[:, :3, 3]
    center, _ = nearest_point(cameras, np.einsum("nij,nj->ni", c2w[:, :3, :3], rays))
    depth = np.einsum("ni,ni->n", center - cameras, c2w[:, :3, 2])
    if (depth <= 0).any():
        view = names[int(depth.argmin())]
        raise PmniError(
            f"view {view}: faces away from where the other views see the object; correct its pose, or invert all poses "
            "if they are world-to-camera"
        )
    radius = max(radius_at_depth_1(k, mask) * z for k, mask, z in zip(K, masks, depth))
    similarity = sphere_similarity(center, radius)
    distances = mask_distances(masks)
    grid = grid_points(_RESOLUTION).reshape(-1, 3).numpy()
    votes = 2 if len(masks) >= _MIN_VIEWS_FOR_OUTLIER else 1
    for _ in range(3):
        unit = transform_poses(np.linalg.inv(similarity), c2w)
        # A hull thinner than the grid spacing still has points within the diagonal of a cell.
        slack = np.sqrt(3) / (_RESOLUTION - 1)
        inside = grid[(hull_distance(grid, distances, K, unit, votes) < slack) & ((grid**2).sum(axis=1) <= 1)]
        if not len(inside):
            raise PmniError(
                "the masks have an empty visual hull: no point of the world lies on the object in all of them; check "
                "that cameras and masks belong together and that poses are camera-to-world"
            )
        similarity = similarity @ sphere_of_points(inside)
    return similarity

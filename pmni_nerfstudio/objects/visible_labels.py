# SPDX-License-Identifier: Apache-2.0
"""Labels that views show at points of a surface."""

from __future__ import annotations

import numpy as np
import trimesh
from jaxtyping import Float, Int

from pmni_nerfstudio.geometry.cameras import project
from pmni_nerfstudio.geometry.interpolation import nearest
from pmni_nerfstudio.geometry.ray_casting import RayCaster

UNSEEN = -1
"""Label of a point that a view does not see."""
_MIN_COSINE = 0.2
"""Least cosine between normal and viewing direction; at grazing angles a pixel's error of the pose changes the label."""


def visible_labels(
    mesh: trimesh.Trimesh,
    labels: Int[np.ndarray, "n h w"],
    K: Float[np.ndarray, "n 3 3"],
    c2w: Float[np.ndarray, "n 4 4"],
    tolerance: float,
) -> Int[np.ndarray, "n v"]:
    """Label of each vertex of a mesh in each view: that of its pixel, or UNSEEN where it is hidden or faces away.

    Args:
        mesh: surface in the world of the poses.
        labels: label images, 0 where there is no object.
        K: intrinsics in pixels, pixel centers at integers.
        c2w: camera-to-world poses, OpenCV axes.
        tolerance: distance in front of a vertex within which the surface does not hide it.
    """
    height, width = labels.shape[1:]
    rays = RayCaster(mesh)
    found = np.full((len(labels), len(mesh.vertices)), UNSEEN, dtype=np.int32)
    for i, (image, k, pose) in enumerate(zip(labels, K, c2w)):
        camera = (mesh.vertices - pose[:3, 3]) @ pose[:3, :3]
        row, column, inside = nearest(project(camera, k), width, height)
        to_view = pose[:3, 3] - mesh.vertices
        distance = np.linalg.norm(to_view, axis=1)
        facing = (to_view * mesh.vertex_normals).sum(axis=1) > _MIN_COSINE * distance
        candidates = np.flatnonzero(inside & facing & (camera[:, 2] > 0))
        directions = -to_view[candidates] / distance[candidates, None]
        first = rays.cast(np.broadcast_to(pose[:3, 3], directions.shape), directions).distance
        seen = candidates[first > distance[candidates] - tolerance]
        found[i, seen] = image[row[seen], column[seen]]
    return found

# SPDX-License-Identifier: Apache-2.0
"""Partition of the common surface of all objects into objects."""

from __future__ import annotations

import numpy as np
import trimesh
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from pmni_nerfstudio.geometry.interpolation import grid_points
from pmni_nerfstudio.registration.surface.sdf_grid import Surface

_SMOOTHING_VOXELS = 3.0
"""Radius about a vertex, in voxels, whose observations decide on its object where labels contradict each other."""
_NEIGHBORS = 100
"""Nearest vertices that are compared with a point."""
_CLEAR = 2.0
"""Ratio of the distances from the nearest vertices of two objects from which on a point belongs to the nearer one."""


def owners(
    mesh: trimesh.Trimesh, seen: Int[np.ndarray, "n v"], objects: list[int], voxel: float
) -> Int[np.ndarray, " v"]:
    """Object of every vertex: the most frequent one among the observations around it, or of the nearest vertex with some.

    Args:
        mesh: the common surface.
        seen: object of each vertex in each view, zero or negative where there is none.
        objects: numbers of the objects.
        voxel: edge length of the surface's grid cells.
    """
    counts = np.stack([(seen == number).sum(axis=0) for number in objects], axis=1)
    tree = KDTree(mesh.vertices)
    near = tree.query_ball_point(mesh.vertices, _SMOOTHING_VOXELS * voxel)
    sizes = [len(found) for found in near]
    index = np.concatenate([np.asarray(found, dtype=np.int64) for found in near])
    rows = np.repeat(np.arange(len(sizes)), sizes)
    total = np.stack([np.bincount(rows, counts[index, k], len(sizes)) for k in range(len(objects))], axis=1)
    numbers = np.asarray(objects)[total.argmax(axis=1)]
    known = np.flatnonzero(total.any(axis=1))
    nearest = KDTree(mesh.vertices[known]).query(mesh.vertices)[1]
    return numbers[known][nearest]


def part_of(surface: Surface, mesh: trimesh.Trimesh, is_part: np.ndarray) -> Surface:
    """The part of a solid that belongs to one object.

    Where objects touch or merge, the solid is cut half-way between the vertices of the object and those of the others.

    Args:
        surface: the common surface.
        mesh: its mesh.
        is_part: (V,) bool, the mesh's vertices on the object; at least one.
    """
    if is_part.all():
        return surface
    n = surface.resolution
    points = grid_points(n).reshape(-1, 3).numpy()
    # Far outside of the solid only the sign matters.
    close = np.flatnonzero(surface.sdf.reshape(-1) < 2 * surface.voxel)
    vertices, normals = np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals)
    own, other = KDTree(vertices[is_part]), KDTree(vertices[~is_part])
    near_own, near_other = own.query(points[close])[0], other.query(points[close])[0]
    cut = 0.5 * (near_own - near_other)
    open_points = np.flatnonzero((near_own < _CLEAR * near_other) & (near_other < _CLEAR * near_own))
    contested = points[close[open_points]]
    behind_own = _distance_behind(own, vertices[is_part], normals[is_part], contested)
    cut[open_points] = 0.5 * (behind_own - _distance_behind(other, vertices[~is_part], normals[~is_part], contested))
    sdf = surface.sdf.reshape(-1).copy()
    sdf[close] = np.maximum(sdf[close], cut)
    return Surface(sdf.reshape(surface.sdf.shape).astype(np.float32))


def _distance_behind(
    tree: KDTree,
    vertices: Float[np.ndarray, "v 3"],
    normals: Float[np.ndarray, "v 3"],
    points: Float[np.ndarray, "p 3"],
) -> Float[np.ndarray, " p"]:
    """Distance of points from some vertices, plus that by which they are in front of their tangent planes.

    It is the mean over the nearest vertices. A solid is behind its surface; the distance alone would give the middle of a
    ball to another one that touches it.
    """
    count = min(_NEIGHBORS, len(vertices))
    distance, index = tree.query(points, k=count)
    distance, index = distance.reshape(len(points), count), index.reshape(len(points), count)
    in_front = np.einsum("pki,pki->pk", points[:, None] - vertices[index], normals[index])
    return (distance + in_front.clip(min=0)).mean(axis=1)

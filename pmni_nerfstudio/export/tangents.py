# SPDX-License-Identifier: Apache-2.0
"""Tangent frames of a mesh for tangent-space normal maps, as MikkTSpace defines them.

The tangent of a face is the direction on it in which u grows at constant v. The tangent of a vertex is the mean over its
corners of the face's unit tangent projected into the plane of the vertex normal, weighted by the angle of the corner
(M. Mikkelsen, "Simulation of Wrinkled Surfaces Revisited", 2008, and his MikkTSpace, the default of glTF 2.0).
"""

from __future__ import annotations

import numpy as np
import trimesh
from jaxtyping import Float, Int

_TINY = 1e-20


def split_by_orientation(
    faces: Int[np.ndarray, "F 3"], uv: Float[np.ndarray, "V 2"]
) -> tuple[Int[np.ndarray, "F 3"], Int[np.ndarray, "W"]]:
    """Duplicate vertices that belong to mirrored and unmirrored faces, because a vertex has one orientation only.

    Args:
        faces: faces of the mesh.
        uv: texture coordinates, v upwards.

    Returns:
        Faces with the new vertices, and the original vertex of each.
    """
    key = 2 * faces + (_uv_area(faces, uv) < 0)[:, None]
    kept, index = np.unique(key, return_inverse=True)
    return index.reshape(-1, 3), kept // 2


def vertex_tangents(mesh: trimesh.Trimesh, uv: Float[np.ndarray, "V 2"]) -> Float[np.ndarray, "V 4"]:
    """Unit tangents perpendicular to the vertex normals, and the sign s of the bitangent s * normal x tangent.

    Vertices without a tangent, as those of faces without area, get an arbitrary one.

    Args:
        mesh: mesh with unit vertex normals, whose vertices have faces of one orientation (see `split_by_orientation`).
        uv: texture coordinates, v upwards: the bitangent points where v grows.
    """
    faces, normals = np.asarray(mesh.faces), np.asarray(mesh.vertex_normals)
    edges = mesh.vertices[faces[:, 1:]] - mesh.vertices[faces[:, :1]]
    uv_edges = uv[faces[:, 1:]] - uv[faces[:, :1]]
    area = _uv_area(faces, uv)
    along_u = uv_edges[:, 1, 1, None] * edges[:, 0] - uv_edges[:, 0, 1, None] * edges[:, 1]
    along_u = np.where(area < 0, -1.0, 1.0)[:, None] * along_u
    total, sign = np.zeros((len(uv), 3)), np.ones(len(uv))
    for corner in range(3):
        vertex = faces[:, corner]
        tangent = _unit(_in_plane(along_u, normals[vertex]))
        # As in MikkTSpace, the angle is that of the edges projected into the plane of the normal.
        first, second = (
            _unit(_in_plane(mesh.vertices[faces[:, (corner + step) % 3]] - mesh.vertices[vertex], normals[vertex]))
            for step in (1, 2)
        )
        angle = np.arccos((first * second).sum(axis=1).clip(-1, 1))
        angle[area == 0] = 0
        np.add.at(total, vertex, angle[:, None] * tangent)
    sign[faces[area < 0].ravel()] = -1
    tangents = _unit(_in_plane(total, normals))
    lost = ~(np.linalg.norm(tangents, axis=1) > 0.5)
    axis = np.eye(3)[np.abs(normals[lost]).argmin(axis=1)]
    tangents[lost] = _unit(_in_plane(axis, normals[lost]))
    return np.column_stack([tangents, sign])


def _uv_area(faces: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Twice the signed areas (F,) of faces in the texture, negative if mirrored."""
    a, b = uv[faces[:, 1]] - uv[faces[:, 0]], uv[faces[:, 2]] - uv[faces[:, 0]]
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _in_plane(vectors: np.ndarray, normals: np.ndarray) -> np.ndarray:
    return vectors - (vectors * normals).sum(axis=1, keepdims=True) * normals


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(_TINY)

# SPDX-License-Identifier: Apache-2.0
"""Texture atlas of a mesh, by xatlas: texture coordinates, and the surface points of the texels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import trimesh
from jaxtyping import Bool, Float, Int, Shaped
from scipy.ndimage import distance_transform_edt

from pmni_nerfstudio.export.tangents import split_by_orientation
from pmni_nerfstudio.geometry.ray_casting import RayCaster

PART_FACES = 2000
"""Faces that are unwrapped together. xatlas takes time quadratic in the size of a chart: 100,000 faces as one mesh take
minutes."""
_PADDING = 4
"""Distance between charts in texels, so that interpolation and the first two mipmaps do not mix charts."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """A mesh with texture coordinates in a square texture.

    Its vertices are duplicated along the seams of the charts, and where mirrored faces meet others.
    """

    mesh: trimesh.Trimesh
    """The mesh, with the vertex normals of the mesh that was unwrapped."""
    uv: Float[np.ndarray, "V 2"]
    """Texture coordinates in [0, 1], from the lower left corner of the texture."""
    size: int
    """Side length of the texture in texels."""
    face: Int[np.ndarray, "P"]
    """Faces at the centers of the covered texels, in row-major order."""
    weights: Float[np.ndarray, "P 3"]
    """Barycentric weights at the centers of the covered texels."""
    covered: Bool[np.ndarray, "S S"]
    """Texels whose centers lie on a chart, top row first."""

    def interpolate(self, values: Float[np.ndarray, "V C"], part: slice = slice(None)) -> Float[np.ndarray, "P C"]:
        """Values of the mesh's vertices at the covered texels, or at a part of these."""
        weights, corners = self.weights[part], np.asarray(self.mesh.faces)[self.face[part]]
        out = weights[:, :1] * values[corners[:, 0]]  # corner by corner, which takes half the time of einsum
        out += weights[:, 1:2] * values[corners[:, 1]]
        out += weights[:, 2:] * values[corners[:, 2]]
        return np.asarray(out)

    def image(self, values: Shaped[np.ndarray, "P C"]) -> Shaped[np.ndarray, "S S C"]:
        """Texture of the values of the covered texels.

        The other texels get the nearest value, because interpolation and mipmaps read them.
        """
        texture = np.zeros((self.size, self.size, values.shape[1]), dtype=values.dtype)
        texture[self.covered] = values
        rows, columns = self._nearest
        texture[~self.covered] = texture[rows, columns]
        return texture

    @cached_property
    def _nearest(self) -> tuple[Int[np.ndarray, "U"], Int[np.ndarray, "U"]]:
        """Row and column of the covered texel nearest to each of those that are not covered."""
        nearest = distance_transform_edt(~self.covered, return_distances=False, return_indices=True)
        assert isinstance(nearest, np.ndarray)
        return nearest[0][~self.covered], nearest[1][~self.covered]


def unwrap(mesh: trimesh.Trimesh, size: int) -> Atlas:
    """Unwrap a mesh into a square texture.

    Args:
        mesh: mesh to unwrap; takes seconds for 10,000 faces.
        size: side length of the texture in texels.
    """
    import xatlas

    atlas, options = xatlas.Atlas(), xatlas.PackOptions()
    options.resolution, options.padding = size, _PADDING
    # Scaled to faces of unit area: xatlas drops faces below a fixed area.
    scaled = (mesh.vertices - mesh.vertices.mean(axis=0)) / np.sqrt(mesh.area / len(mesh.faces))
    parts = [np.unique(mesh.faces[part], return_inverse=True) for part in _parts(np.asarray(mesh.triangles_center))]
    for vertices, corners in parts:
        atlas.add_mesh(scaled[vertices].astype(np.float32), corners.reshape(-1, 3).astype(np.uint32))
    atlas.generate(pack_options=options)
    origin, faces, uv, count = [], [], [], 0
    for index, (vertices, _) in enumerate(parts):
        part_origin, part_faces, part_uv = atlas[index]
        origin.append(vertices[part_origin])
        faces.append(part_faces.astype(np.int64) + count)
        uv.append(part_uv)
        count += len(part_origin)
    sides = np.array([atlas.width, atlas.height])
    texture_uv = np.concatenate(uv) * sides / max(sides)
    # xatlas mirrors some of the charts.
    corners, kept = split_by_orientation(np.concatenate(faces), texture_uv)
    return _rasterized(mesh, np.concatenate(origin)[kept], corners, texture_uv[kept], size)


def _parts(centers: Float[np.ndarray, "F 3"]) -> list[Int[np.ndarray, "n"]]:
    """Split faces into compact groups of at most PART_FACES, by halving along the longest side."""
    done, waiting = [], [np.arange(len(centers))]
    while waiting:
        faces = waiting.pop()
        if len(faces) <= PART_FACES:
            done.append(faces)
            continue
        order = faces[np.argsort(centers[faces, np.ptp(centers[faces], axis=0).argmax()], kind="stable")]
        waiting += [order[: len(order) // 2], order[len(order) // 2 :]]
    return done


def _rasterized(mesh: trimesh.Trimesh, origin: np.ndarray, faces: np.ndarray, uv: np.ndarray, size: int) -> Atlas:
    """Find the face and the barycentric weights at each texel center.

    Args:
        mesh: mesh that was unwrapped.
        origin: its vertex that each vertex (V,) of the atlas is a copy of.
        faces: faces (F, 3) of the atlas.
        uv: texture coordinates (V, 2).
        size: side length of the texture in texels.
    """
    rays = RayCaster(trimesh.Trimesh(np.column_stack([uv * size, np.zeros(len(uv))]), faces, process=False))
    face, weights, covered = [], [], np.zeros((size, size), dtype=bool)
    x = np.arange(size) + 0.5
    for row in range(size):
        origins = np.column_stack([x, np.full(size, size - row - 0.5), np.ones(size)])
        hits = rays.cast(origins, np.broadcast_to([0.0, 0.0, -1.0], origins.shape))
        hit = covered[row] = np.isfinite(hits.distance)
        face.append(hits.face[hit].astype(np.int64))
        weights.append(np.column_stack([1 - hits.uv[hit].sum(axis=1), hits.uv[hit]]))
    unwrapped = trimesh.Trimesh(mesh.vertices[origin], faces, vertex_normals=mesh.vertex_normals[origin], process=False)
    return Atlas(unwrapped, uv, size, np.concatenate(face), np.concatenate(weights), covered)

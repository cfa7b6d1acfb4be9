# SPDX-License-Identifier: Apache-2.0
"""Transfer of a full mesh's details to the texture of a simplified one: normals and ambient occlusion by ray casting.

Normal maps follow glTF 2.0: x along the tangent (u), y along the bitangent (upwards in the image), z along the normal. The
frame of a texel is the interpolated vertex normal N and tangent T, both normalized, and s N x T, as in the usual viewers.
"""

from __future__ import annotations

import numpy as np
import trimesh
from jaxtyping import Float, UInt8

from pmni_nerfstudio.export.atlas import Atlas
from pmni_nerfstudio.geometry.ray_casting import Hits, RayCaster

SEARCH_DISTANCE = 0.02
"""Distance up to which the full mesh is searched along a normal, as a fraction of its diagonal."""
_CHUNK = 1 << 19
"""Points processed at once: about 200 MB."""


def corresponding_points(
    points: Float[np.ndarray, "P 3"], normals: Float[np.ndarray, "P 3"], full: trimesh.Trimesh, rays: RayCaster
) -> Hits:
    """Points of a mesh that correspond to points of a simplification of it.

    That is the nearest of the hits along the normal and against it, if it is near and faces the same way; otherwise, as at
    sharp edges, the closest point.

    Args:
        points: points on the simplified mesh.
        normals: its unit normals there.
        full: full mesh.
        rays: ray caster of the full mesh.

    Returns:
        Hits on the full mesh, all of them finite; distances along the normal, or to the closest point.
    """
    diagonal = float(np.linalg.norm(full.extents))
    start = 1e-4 * diagonal  # a point on the full mesh itself is hit from both sides
    best = Hits(np.full(len(points), np.inf, np.float32), np.zeros(len(points), np.uint32), np.zeros((len(points), 2)))
    for direction in (normals, -normals):
        cast = np.flatnonzero(best.distance > start)  # most points are found by the first rays
        hits = rays.cast(points[cast] - start * direction[cast], direction[cast])
        distance = np.abs(hits.distance - start)
        hit = np.flatnonzero(distance < np.minimum(best.distance[cast], SEARCH_DISTANCE * diagonal))
        hit = hit[np.einsum("pi,pi->p", full.face_normals[hits.face[hit]], normals[cast[hit]]) > 0]
        found = cast[hit]
        best.distance[found], best.face[found], best.uv[found] = distance[hit], hits.face[hit], hits.uv[hit]
    lost = np.flatnonzero(~np.isfinite(best.distance))
    if len(lost):
        closest = rays.closest_hits(points[lost])
        best.distance[lost], best.face[lost], best.uv[lost] = closest.distance, closest.face, closest.uv
    return best


def ambient_occlusion(mesh: trimesh.Trimesh, rays: RayCaster, count: int = 64, seed: int = 0) -> Float[np.ndarray, "V"]:
    """Share of the hemisphere above each vertex, weighted by the cosine to the normal, from which light arrives.

    Args:
        mesh: mesh with outward normals.
        rays: ray caster of the mesh.
        count: rays cast from each vertex.
        seed: seed of the directions, which are stratified.
    """
    rng = np.random.default_rng(seed)
    normals = np.asarray(mesh.vertex_normals)
    start = np.asarray(mesh.vertices) + 1e-3 * np.linalg.norm(mesh.extents) * normals
    free = np.zeros(len(normals))
    for i in range(count):
        # A unit vector distributed uniformly on the sphere, added to the normal, has the cosine's distribution.
        z = 1 - 2 * (i + rng.random(len(normals))) / count
        phi = 2 * np.pi * (i * 0.6180339887 + rng.random(len(normals)))
        radius = np.sqrt(1 - z**2)
        directions = normals + np.column_stack([radius * np.cos(phi), radius * np.sin(phi), z])
        free += ~np.isfinite(rays.cast(start, directions).distance)
    return free / count


class BakedDetails:
    """Values of the full mesh at the covered texels of a level's atlas."""

    def __init__(
        self, atlas: Atlas, full: trimesh.Trimesh, rays: RayCaster, tangents: Float[np.ndarray, "V 4"]
    ) -> None:
        """Find the corresponding points.

        Args:
            atlas: level of detail with its texture atlas.
            full: full mesh.
            rays: ray caster of the full mesh.
            tangents: tangents of the level's vertices; see `vertex_tangents`.
        """
        self._full = full
        count = len(atlas.face)
        self._face = np.empty(count, np.uint32)
        self._uv = np.empty((count, 2), np.float32)
        self.normal_map = np.empty((count, 3), np.uint8)
        """Tangent-space normals (P, 3), 0 to 255 for -1 to 1."""
        full_normals = np.asarray(full.vertex_normals)
        for begin in range(0, count, _CHUNK):
            part = slice(begin, begin + _CHUNK)
            points = atlas.interpolate(atlas.mesh.vertices, part)
            normals = _unit(atlas.interpolate(atlas.mesh.vertex_normals, part))
            tangent = _unit(atlas.interpolate(tangents[:, :3], part))
            sign = tangents[atlas.mesh.faces[atlas.face[part], 0], 3]
            hits = corresponding_points(points, normals, full, rays)
            self._face[part], self._uv[part] = hits.face, hits.uv
            every = np.ones(len(points), dtype=bool)
            detail = _unit(hits.interpolate(every, full.faces, full_normals))
            self.normal_map[part] = _encoded(detail, normals, tangent, sign)

    def interpolate(self, values: Float[np.ndarray, "V C"]) -> Float[np.ndarray, "P C"]:
        """Values of the full mesh's vertices at the texels."""
        hits = Hits(np.zeros(len(self._face), np.float32), self._face, self._uv)
        return hits.interpolate(np.ones(len(self._face), dtype=bool), self._full.faces, values)


def _encoded(
    detail: Float[np.ndarray, "P 3"],
    normal: Float[np.ndarray, "P 3"],
    tangent: Float[np.ndarray, "P 3"],
    sign: Float[np.ndarray, "P"],
) -> UInt8[np.ndarray, "P 3"]:
    """Unit normals in the frame of tangent, bitangent and normal, as 8-bit colors."""
    bitangent = sign[:, None] * np.cross(normal, tangent)
    # The interpolated tangent is not quite perpendicular to the normal: their oblique frame is inverted, not transposed.
    cosine = (normal * tangent).sum(axis=1)
    x, y, z = ((detail * axis).sum(axis=1) for axis in (tangent, bitangent, normal))
    local = np.column_stack([x - cosine * z, y, z - cosine * x])  # times 1 - cosine^2, which drops out
    return np.round(255 * (_unit(local) + 1) / 2).clip(0, 255).astype(np.uint8)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)

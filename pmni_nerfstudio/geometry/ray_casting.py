# SPDX-License-Identifier: Apache-2.0
"""Ray casting against a triangle mesh, and distances to it, by Embree through Open3D in single precision.

Coordinates are taken relative to the middle of the mesh, because single precision does not resolve an object that is far
from the origin of its world, as in map coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d
import trimesh

from pmni_nerfstudio.geometry.cameras import pixel_rays

RAYS_PER_CALL = 1 << 16
"""Rays cast in one call: 6 MB. More are no faster."""


@dataclass(frozen=True)
class Hits:
    """First hits of R rays with a mesh."""

    distance: np.ndarray
    """(R,) distances in multiples of the ray direction's length; infinite for a miss."""
    face: np.ndarray
    """(R,) indices of the faces hit; undefined for a miss."""
    uv: np.ndarray
    """(R, 2) barycentric weights of the face's second and third corner."""

    def interpolate(self, hit: np.ndarray, faces: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Interpolate vertex values at the hits.

        Args:
            hit: (R,) bool, the rays to evaluate; each must hit the mesh.
            faces: (F, 3) of the mesh.
            values: (V, C) at the mesh's vertices.

        Returns:
            (P, C), one row for each chosen ray.
        """
        uv, corners = self.uv[hit], faces[self.face[hit]]
        # Corner by corner, which takes half the time of einsum.
        out = (1 - uv[:, :1] - uv[:, 1:]) * values[corners[:, 0]]
        out += uv[:, :1] * values[corners[:, 1]]
        out += uv[:, 1:] * values[corners[:, 2]]
        return out


class RayCaster:
    """Ray and distance queries against one mesh."""

    def __init__(self, mesh: trimesh.Trimesh) -> None:
        self._origin = mesh.bounds.mean(axis=0)
        self._scene = o3d.t.geometry.RaycastingScene()
        self._scene.add_triangles(
            o3d.core.Tensor(np.ascontiguousarray(mesh.vertices - self._origin, dtype=np.float32)),
            o3d.core.Tensor(np.ascontiguousarray(mesh.faces, dtype=np.uint32)),
        )

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """First hits of rays with the mesh.

        Args:
            origins: (R, 3).
            directions: (R, 3), of any length; distances are in multiples of it.
        """
        count = len(origins)
        hits = Hits(np.empty(count, np.float32), np.empty(count, np.uint32), np.empty((count, 2), np.float32))
        for start in range(0, count, RAYS_PER_CALL):
            part = slice(start, start + RAYS_PER_CALL)
            rays = np.concatenate(
                [origins[part] - self._origin, directions[part]], axis=-1, dtype=np.float32, casting="same_kind"
            )
            found = self._scene.cast_rays(o3d.core.Tensor(rays))
            hits.distance[part] = found["t_hit"].numpy()
            hits.face[part] = found["primitive_ids"].numpy()
            hits.uv[part] = found["primitive_uvs"].numpy()
        return hits

    def visible_points(
        self, K: np.ndarray, c2w: np.ndarray, width: int, height: int, masks: np.ndarray | None = None
    ) -> np.ndarray:
        """Points (P, 3) where the rays of all views' pixels first hit the mesh.

        Args:
            K: (3, 3) for all views or (N, 3, 3), pixel centers at integers.
            c2w: (N, 4, 4), OpenCV axes, in the mesh's world.
            width: image width, in pixels.
            height: image height, in pixels.
            masks: (N, height, width) bool, the pixels to cast; all by default.
        """
        points = []
        for view, (k, pose) in enumerate(zip(np.broadcast_to(K, (len(c2w), 3, 3)), c2w)):
            origins, directions = pixel_rays(k, pose, width, height)
            distance = self.cast(origins, directions).distance
            hit = np.isfinite(distance)
            if masks is not None:
                hit &= masks[view].ravel()
            points.append(origins[hit] + distance[hit, None] * directions[hit])
        return np.concatenate(points)

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Unsigned distances (P,) of points (P, 3) to the surface."""
        # A copy, because a view of Open3D's memory that lives until Python exits makes it exit with code 1.
        return self._scene.compute_distance(o3d.core.Tensor((points - self._origin).astype(np.float32))).numpy().copy()

    def closest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Closest surface point (P, 3) to each of points (P, 3), and the unit normal (P, 3) of its face."""
        found = self._scene.compute_closest_points(o3d.core.Tensor((points - self._origin).astype(np.float32)))
        return found["points"].numpy().astype(np.float64) + self._origin, found["primitive_normals"].numpy().astype(
            np.float64
        )

    def closest_hits(self, points: np.ndarray) -> Hits:
        """Faces and barycentric weights of the surface points closest to points (P, 3), with the distances."""
        found = self._scene.compute_closest_points(o3d.core.Tensor((points - self._origin).astype(np.float32)))
        # Copies, as in `distance`.
        face, uv = (found[name].numpy().copy() for name in ("primitive_ids", "primitive_uvs"))
        offset = points - self._origin - found["points"].numpy()
        return Hits(np.linalg.norm(offset, axis=-1).astype(np.float32), face, uv)


def camera_normals(
    mesh: trimesh.Trimesh, rays: RayCaster, K: np.ndarray, c2w: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Render the normal map of a mesh in one view, with interpolated vertex normals.

    Args:
        mesh: mesh in the world of the pose.
        rays: ray caster of the same mesh.
        K: (3, 3), pixel centers at integers.
        c2w: (4, 4), OpenCV axes.
        width: image width, in pixels.
        height: image height, in pixels.

    Returns:
        normals: (height, width, 3) float32, unit, OpenCV camera axes; zero where the ray misses the mesh.
        distance: (height, width) along the pixel's ray; infinite where the ray misses.
    """
    hits = rays.cast(*pixel_rays(K, c2w, width, height))
    hit = np.isfinite(hits.distance)
    normals = np.zeros((len(hit), 3), dtype=np.float32)
    seen = hits.interpolate(hit, mesh.faces, mesh.vertex_normals) @ c2w[:3, :3]
    normals[hit] = seen / np.maximum(np.linalg.norm(seen, axis=-1, keepdims=True), 1e-12)
    return normals.reshape(height, width, 3), hits.distance.reshape(height, width)

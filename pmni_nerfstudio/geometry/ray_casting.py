# SPDX-License-Identifier: Apache-2.0
"""First hits of camera rays with a mesh, and exact distances to it: Embree through Open3D, single precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d
import trimesh

from pmni_nerfstudio.geometry.cameras import pixel_rays

RAYS = 1 << 16
"""Cast at once: 6 MB. More are no faster."""


@dataclass(frozen=True)
class Hits:
    """Where rays first meet a mesh; every array has one row for each of R rays."""

    distance: np.ndarray
    """(R,), infinite for a miss."""
    face: np.ndarray
    """(R,) index of the face; of no meaning for a miss."""
    uv: np.ndarray
    """(R, 2) barycentric weights of the face's second and third corner."""

    def interpolate(self, on: np.ndarray, faces: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Values (V, C) of a mesh's vertices where chosen rays hit it: (P, C) for rays (R,) bool that hit, faces (F, 3)."""
        weights = np.concatenate([1 - self.uv[on].sum(-1, keepdims=True), self.uv[on]], axis=-1)
        return np.einsum("pk,pki->pi", weights, values[faces[self.face[on]]])


class RayCaster:
    """A mesh ready for queries."""

    def __init__(self, mesh: trimesh.Trimesh) -> None:
        self._scene = o3d.t.geometry.RaycastingScene()
        self._scene.add_triangles(
            o3d.core.Tensor(np.ascontiguousarray(mesh.vertices, dtype=np.float32)),
            o3d.core.Tensor(np.ascontiguousarray(mesh.faces, dtype=np.uint32)),
        )

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """First hits of rays with the mesh.

        Args:
            origins: (R, 3).
            directions: (R, 3); distances are in multiples of their lengths.
        """
        count = len(origins)
        found = Hits(np.empty(count, np.float32), np.empty(count, np.uint32), np.empty((count, 2), np.float32))
        for start in range(0, count, RAYS):
            part = slice(start, start + RAYS)
            rays = np.concatenate([origins[part], directions[part]], axis=-1, dtype=np.float32, casting="same_kind")
            hits = self._scene.cast_rays(o3d.core.Tensor(rays))
            found.distance[part] = hits["t_hit"].numpy()
            found.face[part] = hits["primitive_ids"].numpy()
            found.uv[part] = hits["primitive_uvs"].numpy()
        return found

    def visible_points(
        self, K: np.ndarray, c2w: np.ndarray, width: int, height: int, masks: np.ndarray | None = None
    ) -> np.ndarray:
        """Points (P, 3) where the rays of all views' pixels first meet the mesh.

        Args:
            K: (3, 3) for all views or (N, 3, 3), integer pixel centres.
            c2w: (N, 4, 4), OpenCV axes, in the mesh's world.
            width, height: of every view.
            masks: (N, height, width) bool, the pixels to take; all of them by default.
        """
        points = []
        for view, (k, pose) in enumerate(zip(np.broadcast_to(K, (len(c2w), 3, 3)), c2w)):
            origins, directions = pixel_rays(k, pose, width, height)
            distance = self.cast(origins, directions).distance
            on = np.isfinite(distance)
            if masks is not None:
                on &= masks[view].ravel()
            points.append(origins[on] + distance[on, None] * directions[on])
        return np.concatenate(points)

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Unsigned distance (P,) of points (P, 3) to the surface."""
        # A copy: who keeps a view of Open3D's memory until Python ends has it end with exit code 1.
        return self._scene.compute_distance(o3d.core.Tensor(points.astype(np.float32))).numpy().copy()

    def closest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Closest surface point (P, 3) to each of points (P, 3), and the unit normal (P, 3) of its face."""
        found = self._scene.compute_closest_points(o3d.core.Tensor(points.astype(np.float32)))
        return found["points"].numpy().astype(np.float64), found["primitive_normals"].numpy().astype(np.float64)


def camera_normals(
    mesh: trimesh.Trimesh, rays: RayCaster, K: np.ndarray, c2w: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """What a camera sees of a mesh: the normals of its vertices, interpolated.

    Args:
        mesh: in the world of the pose.
        rays: the same mesh, ready for queries.
        K: (3, 3), integer pixel centres.
        c2w: (4, 4), OpenCV axes.
        width, height: of the view.

    Returns:
        normals: (height, width, 3) float32, unit, OpenCV camera axes; zero where the mesh isn't seen.
        distance: (height, width) along the pixel's ray, infinite there.
    """
    hits = rays.cast(*pixel_rays(K, c2w, width, height))
    on = np.isfinite(hits.distance)
    normals = np.zeros((len(on), 3), dtype=np.float32)
    seen = hits.interpolate(on, mesh.faces, mesh.vertex_normals) @ c2w[:3, :3]
    normals[on] = seen / np.maximum(np.linalg.norm(seen, axis=-1, keepdims=True), 1e-12)
    return normals.reshape(height, width, 3), hits.distance.reshape(height, width)

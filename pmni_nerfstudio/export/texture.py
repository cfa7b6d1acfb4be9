# SPDX-License-Identifier: Apache-2.0
"""Colors of points on a surface from photographs or albedo maps, as a texture that other levels of detail read."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import trimesh
from jaxtyping import Bool, Float, Float32

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.export.atlas import Atlas
from pmni_nerfstudio.export.baking import corresponding_points
from pmni_nerfstudio.export.color_blending import blended, fill_unseen, view_gains
from pmni_nerfstudio.export.color_samples import bilinear, gather_samples
from pmni_nerfstudio.export.photographs import Photograph
from pmni_nerfstudio.geometry.ray_casting import RayCaster

_CHUNK = 1 << 19


def surface_colors(
    mesh: trimesh.Trimesh,
    rays: RayCaster,
    points: Float[np.ndarray, "P 3"],
    normals: Float[np.ndarray, "P 3"],
    photographs: Iterable[Photograph],
) -> tuple[Float32[np.ndarray, "P 3"], Bool[np.ndarray, " P"]]:
    """Colors of points on a mesh.

    Args:
        mesh: mesh that determines the visibility of the points.
        rays: its ray caster.
        points: points on the mesh.
        normals: unit outward normals at the points.
        photographs: photographs of the mesh, each read once.

    Returns:
        RGB in linear light, and whether any view sees each point. Points that no view sees get the colors of points
        nearby that are seen.

    Raises:
        PmniError: no photograph sees any of the points.
    """
    samples = gather_samples(mesh, rays, points, normals.astype(np.float32), photographs)
    if not samples.weights.any():
        raise PmniError("no photograph sees the surface; give a mesh and poses of this scene, in the same world")
    colors, seen = blended(samples, view_gains(samples))
    fill_unseen(colors, seen, points, float(np.linalg.norm(mesh.extents)))
    return colors, seen


class ColorTexture:
    """Colors of a surface in the texture of one level of detail, from which the other levels take theirs."""

    def __init__(self, atlas: Atlas, colors: Float32[np.ndarray, "P 3"], seen: Bool[np.ndarray, " P"]) -> None:
        """Make the texture.

        Args:
            atlas: level of detail with its texture atlas.
            colors: of the covered texels, in linear light.
            seen: whether a view sees each of them.
        """
        self._level, self._uv = atlas.mesh, atlas.uv
        self._image = atlas.image(np.column_stack([colors, seen.astype(np.float32)]))

    def at(
        self, points: Float[np.ndarray, "P 3"], normals: Float[np.ndarray, "P 3"]
    ) -> tuple[Float32[np.ndarray, "P 3"], Bool[np.ndarray, " P"]]:
        """Colors in linear light at points near the level with unit normals, and whether a view sees them."""
        rays, faces = RayCaster(self._level), np.asarray(self._level.faces)
        size, found = len(self._image), np.empty((len(points), 4), np.float32)
        for start in range(0, len(points), _CHUNK):
            part = slice(start, start + _CHUNK)
            hits = corresponding_points(points[part], normals[part], self._level, rays)
            uv = hits.interpolate(np.ones(len(hits.face), dtype=bool), faces, self._uv)
            x, y = uv[:, 0] * size - 0.5, (1 - uv[:, 1]) * size - 0.5
            found[part] = bilinear(self._image, x.astype(np.float32), y.astype(np.float32))
        return found[:, :3], found[:, 3] > 0.5

# SPDX-License-Identifier: Apache-2.0
"""Interreflection: diffuse light that the elements of a surface reflect onto each other, with several bounces.

The elements are points distributed evenly over the surface. The irradiance of a point is the mean radiance of the
elements that cosine-weighted random rays hit, a Monte Carlo form of radiosity (Goral et al., SIGGRAPH 1984). Channels
are averaged.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32
from scipy.sparse import csr_matrix
from scipy.spatial import KDTree

from pmni_nerfstudio.material.lit_views import LoadedView, Surface

_RAYS = 4, 64
"""Fewest and most rays of a point."""
_MAX_RAYS = 4_000_000
"""Largest number of rays of all points of a view. Of many pixels, each has fewer, and their noise averages out in a
texel."""
_BOUNCES = 4
_RAYS_AT_ONCE = 1 << 19


def rays_of(points: int) -> int:
    """Number of rays of each point of a view with this number of points."""
    return int(np.clip(_MAX_RAYS // max(points, 1), *_RAYS))


class Interreflection:
    """Elements of a surface, and the transfer of light between them."""

    def __init__(self, surface: Surface, count: int) -> None:
        """Place the elements, and cast the rays between them.

        Args:
            surface: the surface.
            count: number of elements.
        """
        self._surface = surface
        self.points, self.normals = surface.points(count)
        self._tree = KDTree(self.points)
        self._between = self.transfer(self.points, self.normals)

    def transfer(
        self, points: Float[np.ndarray, "q 3"], normals: Float[np.ndarray, "q 3"], count: int = _RAYS[1]
    ) -> csr_matrix:
        """Form factors (q, e): share of each point's hemisphere, weighted by the cosine, that each element fills.

        Args:
            points: on the surface.
            normals: their unit normals.
            count: rays of each point; see `rays_of`.
        """
        rng = np.random.default_rng(0)
        rows, elements = [], []
        step = _RAYS_AT_ONCE // count
        for begin in range(0, len(points), step):
            start, normal = points[begin : begin + step], normals[begin : begin + step]
            # A point distributed uniformly on the sphere, added to the normal, has the cosine's distribution.
            z = 1 - 2 * (np.arange(count) + rng.random((len(start), count))) / count
            phi = 2 * np.pi * (np.arange(count) * 0.6180339887 + rng.random((len(start), 1)))
            radius = np.sqrt(1 - z**2)
            local = np.stack([radius * np.cos(phi), radius * np.sin(phi), z], axis=2)
            directions = (normal[:, None] + local).reshape(-1, 3)
            origins = np.repeat(start + self._surface.offset * normal, count, axis=0)
            hits = self._surface.rays.cast(origins, directions)
            hit = np.flatnonzero(np.isfinite(hits.distance))
            faces = np.asarray(self._surface.mesh.face_normals)[hits.face[hit]]
            hit = hit[np.einsum("ri,ri->r", faces, directions[hit]) < 0]
            rows.append(begin + hit // count)
            elements.append(self._tree.query(origins[hit] + hits.distance[hit, None] * directions[hit])[1])
        row, element = (np.concatenate([*parts, np.zeros(0, int)]) for parts in (rows, elements))
        shares = np.full(len(row), 1 / count, np.float32)
        return csr_matrix((shares, (row, element)), shape=(len(points), len(self.points)))

    def direct_light(self, loaded: LoadedView) -> Float32[np.ndarray, "e n"]:
        """Irradiance of the elements by each light of a view, relative to that of a surface that faces the light."""
        cosines, strength = loaded.incidence(self._surface, self.points, self.normals)
        return cosines.light * strength

    def radiance(
        self, direct: Float32[np.ndarray, "e n"], albedo: Float[np.ndarray, " e"]
    ) -> Float32[np.ndarray, "e n"]:
        """Radiance of the elements, relative to that of a white surface that faces the light.

        Args:
            direct: see `direct_light`.
            albedo: of the elements, from 0 to 1.
        """
        return (albedo[:, None] * (direct + self.between(direct, albedo))).astype(np.float32)

    def between(
        self, direct: Float32[np.ndarray, "e n"], albedo: Float[np.ndarray, " e"]
    ) -> Float32[np.ndarray, "e n"]:
        """Irradiance of the elements by each other; see `radiance`."""
        indirect = np.zeros_like(direct)
        for _ in range(_BOUNCES):
            indirect = (self._between @ (albedo[:, None] * (direct + indirect))).astype(np.float32)
        return indirect

    def spread(self, points: Float[np.ndarray, "p 3"], albedo: Float[np.ndarray, "p"]) -> Float[np.ndarray, " e"]:
        """Albedo of the elements from the albedo of points: that of the nearest one."""
        return albedo[KDTree(points).query(self.points)[1]]

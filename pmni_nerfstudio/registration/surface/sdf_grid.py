# SPDX-License-Identifier: Apache-2.0
"""The surface of registration: a signed distance on a grid, its mesh, and what each view sees of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from jaxtyping import Bool, Float
from scipy.ndimage import map_coordinates
from skimage.measure import marching_cubes
from torch import Tensor

from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.geometry.interpolation import lookup_volume, value_and_gradient
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.views import Views


@dataclass(frozen=True, eq=False)
class Surface:
    """Zero of a signed distance on the vertices of a grid over [-1, 1]^3, negative inside, 'ij' = x, y, z."""

    sdf: Float[np.ndarray, "n n n"]

    @property
    def resolution(self) -> int:
        """Vertices per axis."""
        return len(self.sdf)

    @property
    def voxel(self) -> float:
        """Edge of a cell, world units."""
        return 2.0 / (len(self.sdf) - 1)

    @property
    def exists(self) -> bool:
        """Whether anything is inside and anything outside."""
        return bool((self.sdf < 0).any() and (self.sdf > 0).any())

    @cached_property
    def lookups(self) -> Float[Tensor, "4 n n n"]:
        """Value and gradient, for `lookup_volume`."""
        return value_and_gradient(self.sdf)

    @cached_property
    def mesh(self) -> tuple[Float[np.ndarray, "v 3"], np.ndarray]:
        """Vertices and triangles (F, 3)."""
        vertices, faces, _, _ = marching_cubes(
            np.pad(self.sdf, 1, constant_values=self.voxel),
            0.0,
            spacing=(self.voxel,) * 3,
            gradient_direction="descent",
        )
        return vertices.astype(np.float64) - 1 - self.voxel, faces.astype(np.int64)

    @cached_property
    def raycaster(self):
        """Ray caster of the mesh."""
        from pmni_nerfstudio.geometry.ray_casting import RayCaster  # Open3D takes seconds to load

        return RayCaster(trimesh.Trimesh(*self.mesh, process=False))

    def depths(
        self, views: Views, poses: Poses, where: Bool[np.ndarray, "n h w"] | None = None
    ) -> Float[np.ndarray, "n h w"]:
        """z depth of the first hit of pixels' rays; infinite where they miss, and where none is asked for.

        Args:
            views: for pixels and intrinsics.
            poses: of the views.
            where: pixels to ask for; the masks', if not given.
        """
        origins, directions, places = [], [], []
        for i, mask in enumerate(views.masks if where is None else where):
            y, x = np.nonzero(mask)
            directions.append(pixel_directions(views.K[i], np.stack([x, y], axis=1)) @ poses.R[i])
            origins.append(np.broadcast_to(-poses.t[i] @ poses.R[i], directions[-1].shape))
            places.append(i * mask.size + y * mask.shape[1] + x)
        # Directions of depth 1: distances along them are depths.
        hits = self.raycaster.cast(np.concatenate(origins), np.concatenate(directions)).distance
        depths = np.full(views.masks.shape, np.inf, dtype=np.float32)
        depths.reshape(-1)[np.concatenate(places)] = hits
        return depths

    def transformed(self, scale: float, rotation: Float[np.ndarray, "3 3"], shift: Float[np.ndarray, " 3"]) -> Surface:
        """The surface in a world where x is at scale * rotation x + shift.

        By cubic interpolation: distances to the mesh, whose triangles are flat, would be off by degrees in their slope.
        """
        n = self.resolution
        axis = np.linspace(-1.0, 1.0, n)
        points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        before = (points - shift) @ rotation / scale
        values = lookup_volume(self.lookups[:1], before)[:, 0]
        near = np.flatnonzero(np.abs(values) < 3 * self.voxel)
        places = (before[near].T + 1) / self.voxel
        values[near] = map_coordinates(self.sdf.astype(np.float64), places, order=3, mode="nearest")
        return Surface((scale * values).astype(np.float32).reshape(n, n, n))

    def normals_at(self, points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 3"]:
        """Unit gradients at world points; zero where there is none."""
        gradients = lookup_volume(self.lookups[1:], points).astype(np.float64)
        return gradients / np.maximum(np.linalg.norm(gradients, axis=1, keepdims=True), 1e-6)

    def samples(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points (count, 3) spread evenly over the mesh, and their faces' unit outward normals (count, 3)."""
        vertices, faces = self.mesh
        corners = vertices[faces]
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        area = np.linalg.norm(cross, axis=1)
        # Stratified: one draw in each of `count` equal shares of the area.
        at = (np.arange(count) + rng.random(count)) / count * area.sum()
        chosen = np.minimum(np.searchsorted(np.cumsum(area), at), len(area) - 1)
        points = corners[chosen].mean(axis=1)
        return points, cross[chosen] / np.maximum(area[chosen, None], 1e-20)

    def resampled(self, resolution: int) -> Surface:
        """The same surface on another grid."""
        if resolution == self.resolution:
            return self
        volume = torch.from_numpy(self.sdf)[None, None]
        finer = F.interpolate(volume, size=(resolution,) * 3, mode="trilinear", align_corners=True)
        return Surface(finer[0, 0].numpy())

    def redistanced(self, band_voxels: float) -> Surface:
        """Exact distances to the mesh within a band of so many voxels, rough ones beyond it."""

        inside = self.sdf < 0
        near = _dilate(_at_sign_change(inside), int(np.ceil(band_voxels)))
        index = np.flatnonzero(near)
        axis = np.linspace(-1.0, 1.0, self.resolution, dtype=np.float32)
        points = np.stack([axis[i] for i in np.unravel_index(index, self.sdf.shape)], axis=1)
        distance = self.raycaster.distance(points)
        sdf = np.zeros(self.sdf.size, dtype=np.float32)
        sdf[index] = distance
        sdf = np.where(inside, -1, 1) * sdf.reshape(self.sdf.shape)
        return Surface(extend(sdf, near, self.voxel, steps=3))


def extend(sdf: np.ndarray, known: np.ndarray, voxel: float, steps: int) -> np.ndarray:
    """Distances off the known voxels: a voxel's edge more from each to its neighbours, with the sign they had.

    Voxels that `steps` steps do not reach get one large value: out there nothing but the sign matters.
    """
    far = float(np.abs(sdf[known]).max()) + (steps + 1) * voxel
    magnitude = torch.from_numpy(np.where(known, np.abs(sdf), far).astype(np.float32))
    free = torch.from_numpy(~known)
    for _ in range(steps):
        padded = F.pad(magnitude[None, None], (1,) * 6, value=far)[0, 0]
        least = magnitude
        for axis in range(3):
            for side in (0, 2):
                window = [slice(1, -1)] * 3
                window[axis] = slice(side, side + len(sdf))
                least = torch.minimum(least, padded[tuple(window)] + voxel)
        magnitude = torch.where(free, least, magnitude)
    return np.copysign(magnitude.numpy(), sdf)


def _at_sign_change(inside: np.ndarray) -> np.ndarray:
    """Vertices with a neighbour along an axis on the other side."""
    out = np.zeros_like(inside)
    for axis in range(3):
        a = np.moveaxis(inside, axis, 0)
        o = np.moveaxis(out, axis, 0)
        differ = a[1:] != a[:-1]
        o[1:] |= differ
        o[:-1] |= differ
    return out


def _dilate(mask: np.ndarray, steps: int) -> np.ndarray:
    """Grown by `steps` voxels along each axis (a cube)."""
    grown = torch.from_numpy(mask.astype(np.float32))[None, None]
    for axis in range(3):
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = 2 * steps + 1, steps
        grown = F.max_pool3d(grown, kernel, stride=1, padding=padding)
    return grown[0, 0].numpy() > 0

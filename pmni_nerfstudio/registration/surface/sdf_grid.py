# SPDX-License-Identifier: Apache-2.0
"""Surface of the registration: a signed distance on a grid, with its mesh and depth maps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from jaxtyping import Bool, Float
from scipy.ndimage import map_coordinates, maximum_filter
from skimage.measure import marching_cubes
from torch import Tensor

from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.geometry.interpolation import grid_points, lookup_volume, value_and_gradient
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.views import Views


@dataclass(frozen=True, eq=False)
class Surface:
    """Zero level set of a signed distance, given at the vertices of a grid over [-1, 1]^3.

    Distances are negative inside; indices are 'ij' = x, y, z.
    """

    sdf: Float[np.ndarray, "n n n"]

    @property
    def resolution(self) -> int:
        """Vertices per axis."""
        return len(self.sdf)

    @property
    def voxel(self) -> float:
        """Edge length of a grid cell, world units."""
        return 2.0 / (len(self.sdf) - 1)

    @property
    def exists(self) -> bool:
        """Whether distances of both signs occur."""
        return bool((self.sdf < 0).any() and (self.sdf > 0).any())

    @cached_property
    def lookups(self) -> Float[Tensor, "4 n n n"]:
        """Signed distance and its gradient as channels for `lookup_volume`."""
        return value_and_gradient(self.sdf)

    @cached_property
    def mesh(self) -> tuple[Float[np.ndarray, "v 3"], np.ndarray]:
        """Vertices and triangles (F, 3) by marching cubes; closed, since the volume is padded with free space."""
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
        """Depth maps: z depth of the first hit of each pixel's ray.

        Args:
            views: views with masks and intrinsics.
            poses: poses of the views.
            where: pixels to compute; the masks by default.

        Returns:
            Depths, infinite where the ray misses or is not cast.
        """
        origins, directions, indices = [], [], []
        for i, mask in enumerate(views.masks if where is None else where):
            y, x = np.nonzero(mask)
            directions.append(pixel_directions(views.K[i], np.stack([x, y], axis=1)) @ poses.R[i])
            origins.append(np.broadcast_to(-poses.t[i] @ poses.R[i], directions[-1].shape))
            indices.append(i * mask.size + y * mask.shape[1] + x)
        # Ray directions have depth 1, so distances in multiples of them are depths.
        hits = self.raycaster.cast(np.concatenate(origins), np.concatenate(directions)).distance
        depths = np.full(views.masks.shape, np.inf, dtype=np.float32)
        depths.reshape(-1)[np.concatenate(indices)] = hits
        return depths

    def transformed(self, scale: float, rotation: Float[np.ndarray, "3 3"], shift: Float[np.ndarray, " 3"]) -> Surface:
        """The surface moved by x -> scale * rotation x + shift.

        The volume is resampled by cubic interpolation: distances to the mesh, which has flat triangles, would have
        gradients that are wrong by degrees.
        """
        n = self.resolution
        points = grid_points(n, dtype=torch.float64).reshape(-1, 3).numpy()
        before = (points - shift) @ rotation / scale
        values = lookup_volume(self.lookups[:1], before)[:, 0]
        near = np.flatnonzero(np.abs(values) < 3 * self.voxel)
        indices = (before[near].T + 1) / self.voxel
        values[near] = map_coordinates(self.sdf.astype(np.float64), indices, order=3, mode="nearest")
        return Surface((scale * values).astype(np.float32).reshape(n, n, n))

    def normals_at(self, points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 3"]:
        """Unit gradients of the distance at world points; zero where it vanishes."""
        gradients = lookup_volume(self.lookups[1:], points).astype(np.float64)
        return gradients / np.maximum(np.linalg.norm(gradients, axis=1, keepdims=True), 1e-6)

    def samples(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Face centroids (count, 3) sampled evenly over the mesh's area, and their unit outward normals (count, 3)."""
        vertices, faces = self.mesh
        corners = vertices[faces]
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        area = np.linalg.norm(cross, axis=1)
        # Stratified sampling: one sample in each of `count` equal shares of the area.
        at = (np.arange(count) + rng.random(count)) / count * area.sum()
        chosen = np.minimum(np.searchsorted(np.cumsum(area), at), len(area) - 1)
        points = corners[chosen].mean(axis=1)
        return points, cross[chosen] / np.maximum(area[chosen, None], 1e-20)

    def resampled(self, resolution: int) -> Surface:
        """The surface on a grid of another resolution."""
        if resolution == self.resolution:
            return self
        volume = torch.from_numpy(self.sdf)[None, None]
        finer = F.interpolate(volume, size=(resolution,) * 3, mode="trilinear", align_corners=True)
        return Surface(finer[0, 0].numpy())

    def redistanced(self, band_voxels: float) -> Surface:
        """Exact distances to the mesh within a band of this many voxels, approximate ones beyond it."""
        inside = self.sdf < 0
        # Dilation by a cube.
        near = maximum_filter(_at_sign_change(inside), 2 * int(np.ceil(band_voxels)) + 1)
        index = np.flatnonzero(near)
        axis = np.linspace(-1.0, 1.0, self.resolution, dtype=np.float32)
        points = np.stack([axis[i] for i in np.unravel_index(index, self.sdf.shape)], axis=1)
        distance = self.raycaster.distance(points)
        sdf = np.zeros(self.sdf.size, dtype=np.float32)
        sdf[index] = distance
        sdf = np.where(inside, -1, 1) * sdf.reshape(self.sdf.shape)
        return Surface(extend(sdf, near, self.voxel, steps=3))


def extend(sdf: np.ndarray, known: np.ndarray, voxel: float, steps: int) -> np.ndarray:
    """Approximate distances beyond the known vertices, with the signs of `sdf`.

    Magnitudes grow by one voxel per step to a neighbor. Vertices more than `steps` steps away get one large value,
    because only their sign matters.
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
    """Vertices with a neighbor of the other sign along an axis."""
    out = np.zeros_like(inside)
    for axis in range(3):
        a = np.moveaxis(inside, axis, 0)
        o = np.moveaxis(out, axis, 0)
        differ = a[1:] != a[:-1]
        o[1:] |= differ
        o[:-1] |= differ
    return out

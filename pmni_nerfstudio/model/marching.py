# SPDX-License-Identifier: Apache-2.0
"""Ray marching in an occupancy grid that caches the SDF: finds where rays meet the current surface.

On CUDA, nerfacc's kernel traverses the grid; elsewhere `march`, its PyTorch twin, does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Optional

import nerfacc
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

from pmni_nerfstudio.fields.trilinear import resample_volume

SdfFn = Callable[[Float[Tensor, "p 3"]], Float[Tensor, "p"]]

BLOCK_CELLS = 8
"""Cells per axis of a coarse block, which is tested before its cells."""
_CHUNK = 1 << 18
"""Maximum number of points per evaluation of the field."""
_APPROACH_STEPS = 64
"""Samples along a ray that misses the surface, among which the one of the least distance is chosen."""


def sphere_interval(
    origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"]
) -> tuple[Float[Tensor, "r"], Float[Tensor, "r"]]:
    """Distances along unit rays at which they enter and leave the unit sphere; equal for rays that miss it.

    Cameras may be at any distance: 15 radii in DiLiGenT-MV, or inside the sphere.
    """
    middle = -(origins * directions).sum(dim=-1)
    # |o|^2 - 1 - middle^2 cancels almost completely at 15 radii; the norm of the closest point does not.
    closest = origins + middle[:, None] * directions
    half = (1.0 - (closest * closest).sum(dim=-1)).clamp(min=0.0).sqrt()
    nears = (middle - half).clamp(min=0.0)
    return nears, torch.maximum(middle + half, nears)


def coarse_occupancy(occupied: Bool[Tensor, "n n n"]) -> Bool[Tensor, "m m m"]:
    """Blocks of BLOCK_CELLS^3 cells that contain an occupied cell, or that touch such a block."""
    missing = -len(occupied) % BLOCK_CELLS
    occupied = F.pad(occupied, (0, missing) * 3)
    m = len(occupied) // BLOCK_CELLS
    coarse = occupied.view(m, BLOCK_CELLS, m, BLOCK_CELLS, m, BLOCK_CELLS).any(dim=5).any(dim=3).any(dim=1)
    return F.max_pool3d(coarse[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0


def march(
    occupied: Bool[Tensor, "n n n"],
    origins: Float[Tensor, "r 3"],
    directions: Float[Tensor, "r 3"],
    nears: Float[Tensor, "r"],
    fars: Float[Tensor, "r"],
    step: float,
    coarse: Optional[Bool[Tensor, "m m m"]] = None,
) -> tuple[Int[Tensor, "s"], Float[Tensor, "s"], Float[Tensor, "s"]]:
    """Intervals of equal length along rays whose midpoints lie in occupied cells of a grid over [-1, 1]^3.

    PyTorch twin of nerfacc's grid traversal (Li et al., "NerfAcc", ICCV 2023): interval m of a ray begins at
    near + m * step.

    Args:
        occupied: Occupancy grid.
        origins: Ray origins.
        directions: Unit ray directions.
        nears: Distance at which marching begins.
        fars: Distance at which marching ends.
        step: Length of an interval.
        coarse: `coarse_occupancy(occupied)` if already computed.

    Returns:
        Ray index, start and end of each interval, sorted by ray, then by distance.
    """
    resolution = occupied.shape[0]
    if not len(nears):
        return nears.long(), nears, nears
    # First in groups of intervals no longer than a coarse block, so that no interval is farther than a block from its
    # group's midpoint. Most of the sphere is empty, which this finds with an eighth of the lookups.
    group = max(1, int(BLOCK_CELLS * 2.0 / resolution / step))
    count = max(1, math.ceil(float((fars - nears).max()) / (group * step)))
    coarse = coarse_occupancy(occupied) if coarse is None else coarse
    middles = nears[:, None] + step * (group * torch.arange(count, device=nears.device) + 0.5 * group)
    positions = origins[:, None] + middles[..., None] * directions[:, None]
    cell = ((positions + 1.0) * (0.5 * resolution / BLOCK_CELLS)).floor().long().clamp_(0, len(coarse) - 1)
    begins = middles - 0.5 * group * step < fars[:, None]
    ray, number = torch.nonzero(coarse[cell.unbind(dim=-1)] & begins, as_tuple=True)
    slots = group * number[:, None] + torch.arange(group, device=nears.device)
    starts = nears[ray][:, None] + step * slots
    middles = starts + 0.5 * step
    positions = origins[ray][:, None] + middles[..., None] * directions[ray][:, None]
    cell = ((positions + 1.0) * (0.5 * resolution)).floor().long()
    inside = ((cell >= 0) & (cell < resolution)).all(dim=-1) & (middles < fars[ray][:, None])
    cell.clamp_(0, resolution - 1)
    flat = (cell[..., 0] * resolution + cell[..., 1]) * resolution + cell[..., 2]
    kept, slot = torch.nonzero(occupied.view(-1)[flat] & inside, as_tuple=True)
    ray_indices, t_starts = ray[kept], starts[kept, slot]
    return ray_indices, t_starts, t_starts + step


@dataclass
class SurfaceHits:
    """First crossings of rays with the cached surface, or their closest approach to it."""

    t: Float[Tensor, "r"]
    """Distance along the ray to the first crossing; to the minimum SDF for rays without one."""
    hit: Bool[Tensor, "r"]
    """Rays that cross the surface from outside to inside."""
    near: Bool[Tensor, "r"]
    """Rays that pass through occupied cells; the others cannot touch the surface and are not evaluated."""
    t_min_sdf: Float[Tensor, "r"]
    """Distance along the ray to its minimum SDF; meaningful for near rays only."""


class SurfaceGrid(nn.Module):
    """Occupancy grid over [-1, 1]^3 with a cached SDF; cells near its zero level set are occupied.

    It contains nerfacc's occupancy estimator, whose CUDA kernel skips empty space; without CUDA, `march` does. Training
    refreshes the cache near the surface only.

    Args:
        resolution: Number of cells per axis.
        hull: (m, m, m) SDF of the visual hull on a grid over [-1, 1]^3; an empty grid is reset to it.
    """

    volume: Tensor
    hull: Tensor

    def __init__(self, resolution: int, hull: Float[Tensor, "m m m"]) -> None:
        super().__init__()
        self.resolution = resolution
        self.cell = 2.0 / resolution
        self.estimator = nerfacc.OccGridEstimator(roi_aabb=[-1, -1, -1, 1, 1, 1], resolution=resolution, levels=1)
        self.register_buffer("hull", hull.clone())
        self.register_buffer("volume", torch.zeros((resolution + 1,) * 3))
        self._coarse: Optional[Tensor] = None
        self._coarse_version = -1
        self.seed(hull)

    @property
    def occupied(self) -> Bool[Tensor, "n n n"]:
        """Cells at or near the surface."""
        return self.estimator.binaries[0]

    def seed(self, sdf_grid: Float[Tensor, "m m m"]) -> None:
        """Replace the cache by a resampled SDF grid, whose corner vertices lie on the bounds."""
        self.volume.copy_(resample_volume(sdf_grid.to(self.volume), self.resolution + 1))
        self._mark(2.0 * self.cell)

    @torch.no_grad()
    def refresh(self, sdf: SdfFn, margin: float | Tensor = 0.0, everywhere: bool = False) -> None:
        """Evaluate the SDF again at the vertices within a few cells of the cached surface, or everywhere.

        Args:
            sdf: Signed distance field.
            margin: Distance from the surface, in addition to one cell, up to which cells are occupied.
            everywhere: Evaluate all vertices.
        """
        flat = self.volume.view(-1)
        if everywhere:
            chosen = torch.arange(len(flat), device=flat.device)
        else:
            chosen = torch.nonzero(flat.abs() < margin + 4.0 * self.cell)[:, 0]
        n = self.resolution + 1
        for part in chosen.split(_CHUNK):
            index = torch.stack([part // (n * n), (part // n) % n, part % n], dim=-1)
            flat[part] = sdf(index * self.cell - 1.0).to(flat)
        self._mark(margin + self.cell)
        if not self.occupied.any():
            CONSOLE.log("The occupancy grid contains no surface; it is reset to the visual hull.")
            self.seed(self.hull)

    def _mark(self, margin: float | Tensor) -> None:
        """Mark the cells whose corners come within `margin` of the surface, or lie on both sides of it."""
        volume = self.volume[None, None]
        highest = F.max_pool3d(volume, 2, stride=1)[0, 0]
        lowest = -F.max_pool3d(-volume, 2, stride=1)[0, 0]
        self.estimator.binaries[0] = (lowest < margin) & (highest > -margin)

    def lookup(self, positions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
        """Trilinear interpolation of the cached SDF, without gradients."""
        with torch.no_grad():
            coords = positions.detach().flip(-1).view(1, 1, 1, -1, 3)
            values = F.grid_sample(self.volume[None, None], coords, align_corners=True, padding_mode="border")
        return values.view(positions.shape[:-1])

    def march(
        self,
        origins: Float[Tensor, "r 3"],
        directions: Float[Tensor, "r 3"],
        step: float,
    ) -> tuple[Int[Tensor, "s"], Float[Tensor, "s"], Float[Tensor, "s"]]:
        """Intervals in occupied cells inside the unit sphere: see `march`, and nerfacc's kernel on CUDA."""
        nears, fars = sphere_interval(origins, directions)
        if origins.is_cuda:
            return self.estimator.sampling(origins, directions, t_min=nears, t_max=fars, render_step_size=step)
        version = self.estimator.binaries._version  # incremented by every write, also when a checkpoint is loaded
        if version != self._coarse_version:
            self._coarse, self._coarse_version = coarse_occupancy(self.occupied), version
        return march(self.occupied, origins, directions, nears, fars, step, self._coarse)

    @torch.no_grad()
    def trace(self, origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"]) -> SurfaceHits:
        """First crossings of unit rays with the cached surface, by marching one cell at a time and one secant step.

        A ray that starts inside the surface crosses it where it enters the unit sphere, or at its origin.
        """
        rays = len(origins)
        ray, t_start, t_end = self.march(origins, directions, self.cell)
        f_start = self.lookup(origins[ray] + t_start[:, None] * directions[ray])
        f_end = self.lookup(origins[ray] + t_end[:, None] * directions[ray])

        samples = len(ray)
        order = torch.arange(samples, device=ray.device)
        none = torch.full((rays,), samples, device=ray.device)
        first = none.scatter_reduce(0, ray, torch.where(f_end < 0, order, samples), "amin")
        hit = first < samples
        first = first[hit]
        inside_at_start = f_start[first] <= 0
        secant = f_start[first] / (f_start[first] - f_end[first]).clamp(min=1e-9)
        crossing = t_start[first] + torch.where(inside_at_start, 0.0, secant) * (t_end[first] - t_start[first])

        min_sdf = torch.full((rays,), torch.inf, device=ray.device).scatter_reduce(0, ray, f_start, "amin")
        argmin = none.scatter_reduce(0, ray, torch.where(f_start <= min_sdf[ray], order, samples), "amin")
        near = argmin < samples
        t_min_sdf = torch.zeros(rays, device=ray.device)
        t_min_sdf[near] = self._parabola_minimum(origins[near], directions[near], t_start[argmin[near]])
        t = t_min_sdf.clone()
        t[hit] = crossing
        return SurfaceHits(t=t, hit=hit, near=near, t_min_sdf=t_min_sdf)

    def _parabola_minimum(
        self, origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], t: Float[Tensor, "r"]
    ) -> Float[Tensor, "r"]:
        """Minimum of the parabola through the SDF at t - cell, t and t + cell; at most a cell from t."""
        ends = torch.stack([t - self.cell, t, t + self.cell], dim=1)
        before, at, after = self.lookup(origins[:, None] + ends[..., None] * directions[:, None]).unbind(dim=1)
        second_difference = before + after - 2 * at
        shift = torch.where(second_difference > 0, 0.5 * (before - after) / second_difference.clamp(min=1e-9), 0.0)
        return t + self.cell * shift.clamp(-1.0, 1.0)

    @torch.no_grad()
    def closest_approach(
        self,
        origins: Float[Tensor, "r 3"],
        directions: Float[Tensor, "r 3"],
        selected: Bool[Tensor, "r"],
    ) -> Float[Tensor, "r"]:
        """Distance to the minimum SDF along the selected rays, at any distance from the surface; zero for the others."""
        t = torch.zeros(len(origins), device=origins.device)
        origins, directions = origins[selected], directions[selected]
        if len(origins):
            nears, fars = sphere_interval(origins, directions)
            fraction = (torch.arange(_APPROACH_STEPS, device=nears.device) + 0.5) / _APPROACH_STEPS
            along = nears[:, None] + (fars - nears)[:, None] * fraction
            cached = self.lookup(origins[:, None] + along[..., None] * directions[:, None])
            t[selected] = along.gather(1, cached.argmin(dim=1, keepdim=True))[:, 0]
        return t

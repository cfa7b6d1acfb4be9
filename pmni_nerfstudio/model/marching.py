# SPDX-License-Identifier: Apache-2.0
"""Where along its ray each pixel meets the surface: an occupancy grid kept by the current SDF, and marching in it."""

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


def sphere_interval(
    origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"]
) -> tuple[Float[Tensor, "r"], Float[Tensor, "r"]]:
    """Distances along unit rays at which they enter and leave the unit sphere; equal (empty) for rays that miss it.

    Nothing is assumed of the camera's distance: the cameras of DiLiGenT-MV stand 15 radii away, others inside.
    """
    middle = -(origins * directions).sum(dim=-1)
    # |o|^2 - 1 - middle^2 loses all digits at 15 radii; the closest point's norm does not.
    closest = origins + middle[:, None] * directions
    half = (1.0 - (closest * closest).sum(dim=-1)).clamp(min=0.0).sqrt()
    nears = (middle - half).clamp(min=0.0)
    return nears, torch.maximum(middle + half, nears)


COARSE = 8
"""Cells along a block that is looked up first."""


def coarse_occupancy(occupied: Bool[Tensor, "n n n"]) -> Bool[Tensor, "m m m"]:
    """Blocks of COARSE^3 cells of which one is occupied, or one of a block beside it."""
    missing = -len(occupied) % COARSE
    occupied = F.pad(occupied, (0, missing) * 3)
    m = len(occupied) // COARSE
    coarse = occupied.view(m, COARSE, m, COARSE, m, COARSE).any(dim=5).any(dim=3).any(dim=1)
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
    """Intervals of one length along each ray whose middle lies in an occupied cell of a grid over [-1, 1]^3.

    The plain PyTorch twin of nerfacc's grid traversal (Li et al., "NerfAcc", 2023): the intervals lie on the lattice
    near + m * step. Returns the packed ray index, start and end of each, sorted by ray, then by distance. `coarse` is
    the grid's `coarse_occupancy`, where it is known already.
    """
    resolution = occupied.shape[0]
    if not len(nears):
        return nears.long(), nears, nears
    # First in blocks of intervals, no longer than a coarse cell: from a block's middle none of its intervals is more
    # than a coarse cell away. Most of the sphere is empty, and this finds it so at an eighth of the look-ups.
    block = max(1, int(COARSE * 2.0 / resolution / step))
    count = max(1, math.ceil(float((fars - nears).max()) / (block * step)))
    coarse = coarse_occupancy(occupied) if coarse is None else coarse
    middles = nears[:, None] + step * (block * torch.arange(count, device=nears.device) + 0.5 * block)
    positions = origins[:, None] + middles[..., None] * directions[:, None]
    cell = ((positions + 1.0) * (0.5 * resolution / COARSE)).floor().long().clamp_(0, len(coarse) - 1)
    begins = middles - 0.5 * block * step < fars[:, None]
    ray, number = torch.nonzero(coarse[cell.unbind(dim=-1)] & begins, as_tuple=True)
    slots = block * number[:, None] + torch.arange(block, device=nears.device)
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
    """Where rays first meet the cached surface, or pass it by."""

    t: Float[Tensor, "r"]
    """Distance along the ray: of the first crossing, or of the least SDF for rays that cross nothing."""
    hit: Bool[Tensor, "r"]
    """The ray crosses the surface from outside to inside."""
    near: Bool[Tensor, "r"]
    """The ray passes through occupied cells at all; the others cannot touch the surface and cost nothing."""
    lowest: Float[Tensor, "r"]
    """Distance along the ray to where the SDF is least on it, of near rays."""


class SurfaceGrid(nn.Module):
    """The SDF cached on a grid over [-1, 1]^3, with the cells near its zero level marked as occupied.

    Holds nerfacc's occupancy estimator, so that its CUDA kernels march where they are compiled; elsewhere `march`
    does the same in PyTorch. Refreshed as training goes, near the surface only.

    Args:
        resolution: cells per axis.
        hull: (m, m, m) SDF of the visual hull on a grid over [-1, 1]^3, from which an empty grid is seeded anew.
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
        self._coarse_of = -1
        self.seed(hull)

    @property
    def occupied(self) -> Bool[Tensor, "n n n"]:
        """Cells that the surface, or its neighbourhood, may pass through."""
        return self.estimator.binaries[0]

    def seed(self, sdf_grid: Float[Tensor, "m m m"]) -> None:
        """Takes a given SDF grid (corners on the bounds) as the cached one."""
        self.volume.copy_(resample_volume(sdf_grid.to(self.volume), self.resolution + 1))
        self._mark(2.0 * self.cell)

    @torch.no_grad()
    def refresh(self, sdf: SdfFn, margin: float | Tensor = 0.0, everywhere: bool = False, chunk: int = 1 << 18) -> None:
        """Evaluates the SDF anew at the vertices within a few cells of the cached surface, or everywhere.

        Args:
            sdf: the field.
            margin: distance from the surface, beyond one cell, that stays occupied.
        """
        flat = self.volume.view(-1)
        if everywhere:
            chosen = torch.arange(len(flat), device=flat.device)
        else:
            chosen = torch.nonzero(flat.abs() < margin + 4.0 * self.cell)[:, 0]
        n = self.resolution + 1
        for part in chosen.split(chunk):
            index = torch.stack([part // (n * n), (part // n) % n, part % n], dim=-1)
            flat[part] = sdf(index * self.cell - 1.0).to(flat)
        self._mark(margin + self.cell)
        if not self.occupied.any():
            CONSOLE.log("The surface vanished from the occupancy grid: seeded again from the visual hull.")
            self.seed(self.hull)

    def _mark(self, margin: float | Tensor) -> None:
        """Marks the cells whose corners come within `margin` of the surface, or lie on both sides of it."""
        volume = self.volume[None, None]
        highest = F.max_pool3d(volume, 2, stride=1)[0, 0]
        lowest = -F.max_pool3d(-volume, 2, stride=1)[0, 0]
        self.estimator.binaries[0] = (lowest < margin) & (highest > -margin)

    def lookup(self, positions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
        """Trilinear look-up of the cached SDF; no gradients."""
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
        """Intervals in occupied cells inside the unit sphere (see `march`); nerfacc's kernel on CUDA."""
        nears, fars = sphere_interval(origins, directions)
        if origins.is_cuda:
            return self.estimator.sampling(origins, directions, t_min=nears, t_max=fars, render_step_size=step)
        version = self.estimator.binaries._version  # torch counts what is written to a tensor, a checkpoint's too
        if version != self._coarse_of:
            self._coarse, self._coarse_of = coarse_occupancy(self.occupied), version
        return march(self.occupied, origins, directions, nears, fars, step, self._coarse)

    @torch.no_grad()
    def trace(self, origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"]) -> SurfaceHits:
        """First crossing of the cached SDF along unit rays, by marching one cell at a time and one secant step.

        A ray that starts inside counts as crossing where it enters.
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
        share = f_start[first] / (f_start[first] - f_end[first]).clamp(min=1e-9)
        crossing = t_start[first] + torch.where(inside_at_start, 0.0, share) * (t_end[first] - t_start[first])

        least = torch.full((rays,), torch.inf, device=ray.device).scatter_reduce(0, ray, f_start, "amin")
        lowest = none.scatter_reduce(0, ray, torch.where(f_start <= least[ray], order, samples), "amin")
        near = lowest < samples
        deepest = torch.zeros(rays, device=ray.device)
        deepest[near] = self._vertex(origins[near], directions[near], t_start[lowest[near]])
        t = deepest.clone()
        t[hit] = crossing
        return SurfaceHits(t=t, hit=hit, near=near, lowest=deepest)

    def _vertex(
        self, origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], t: Float[Tensor, "r"]
    ) -> Float[Tensor, "r"]:
        """Where a parabola through three of the SDF's values, a cell apart, is least; at most a cell from the middle."""
        ends = torch.stack([t - self.cell, t, t + self.cell], dim=1)
        before, at, after = self.lookup(origins[:, None] + ends[..., None] * directions[:, None]).unbind(dim=1)
        bend = before + after - 2 * at
        shift = torch.where(bend > 0, 0.5 * (before - after) / bend.clamp(min=1e-9), 0.0)
        return t + self.cell * shift.clamp(-1.0, 1.0)

    @torch.no_grad()
    def nearest_pass(
        self,
        origins: Float[Tensor, "r 3"],
        directions: Float[Tensor, "r 3"],
        wanted: Bool[Tensor, "r"],
        steps: int = 64,
    ) -> Float[Tensor, "r"]:
        """Where the wanted rays come nearest the surface, however far they pass it; zero for the others."""
        t = torch.zeros(len(origins), device=origins.device)
        origins, directions = origins[wanted], directions[wanted]
        if len(origins):
            nears, fars = sphere_interval(origins, directions)
            share = (torch.arange(steps, device=nears.device) + 0.5) / steps
            along = nears[:, None] + (fars - nears)[:, None] * share
            cached = self.lookup(origins[:, None] + along[..., None] * directions[:, None])
            t[wanted] = along.gather(1, cached.argmin(dim=1, keepdim=True))[:, 0]
        return t

# SPDX-License-Identifier: Apache-2.0
"""Signed distance of a large scene: fine grids over overlapping blocks, blended, around them a coarse grid of all."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pmni_nerfstudio.fields import trilinear
from pmni_nerfstudio.fields.levels import Levels
from pmni_nerfstudio.geometry.interpolation import grid_points

MAX_BLOCKS = 64
_CHUNK = 1 << 20
_FADE = 0.05
"""Width of the shell inside a block's sphere over which the coarse grid takes over, in radii of the block."""


class BlendedBlocks(Levels):
    """Blend of the grids of separately trained blocks; it is evaluated, not trained.

    The blocks are cells of an oriented box that is cut along its axes, enlarged to overlap. Along an axis, the weight of a
    block falls smoothly from 1 to 0 across each cut, and that of its neighbor rises to 1: their sum is 1. The weight of a
    block is the product over the axes; near and beyond its sphere, the coarse grid takes its place.

    The largest number of blocks is fixed from the start; their places and grids follow with `arrange` and `fill`, or from a
    checkpoint. A block without a grid, whose radius is zero, has no weight.

    Args:
        count: largest number of blocks.
        vertices: vertices per axis of the coarse grid over [-1, 1]^3.
    """

    frame: Tensor
    low: Tensor
    high: Tensor
    ramp: Tensor
    centers: Tensor
    radii: Tensor

    def __init__(self, count: int, vertices: int) -> None:
        super().__init__([vertices])
        self.coarse = nn.Parameter(grid_points(vertices).norm(dim=-1) - 0.5)
        self.grids = nn.ParameterList([_empty(2) for _ in range(count)])
        self.register_buffer("frame", torch.eye(3))
        self.register_buffer("low", torch.zeros(count, 3))
        self.register_buffer("high", torch.zeros(count, 3))
        self.register_buffer("ramp", torch.ones(3))
        self.register_buffer("centers", torch.zeros(count, 3))
        self.register_buffer("radii", torch.zeros(count))

    @property
    def count(self) -> int:
        """Number of blocks with a grid."""
        return int((self.radii > 0).sum())

    @property
    def active_voxel(self) -> float:
        """Edge of the blocks' smallest cell, world units; that of the coarse grid without blocks."""
        cells = [2.0 * float(radius) / (len(grid) - 1) for radius, grid in zip(self.radii, self.grids) if radius > 0]
        return min(cells, default=super().active_voxel)

    @torch.no_grad()
    def arrange(
        self,
        frame: Float[Tensor, "3 3"],
        low: Float[Tensor, "b 3"],
        high: Float[Tensor, "b 3"],
        ramp: Float[Tensor, "3"],
    ) -> None:
        """Set the cells that the blocks are made of, of all blocks or of the first ones.

        Args:
            frame: axes of the box in its columns, world coordinates.
            low: lowest coordinates of each cell along these axes, -inf where no cell follows.
            high: highest coordinates, likewise.
            ramp: half the width of the zone of blending about a cut, for each axis, world units.
        """
        self.frame.copy_(frame)
        self.low[: len(low)] = low.to(self.low)
        self.high[: len(high)] = high.to(self.high)
        self.ramp.copy_(ramp)

    @torch.no_grad()
    def fill(self, block: int, center: Float[Tensor, "3"], radius: float, grid: Float[Tensor, "n n n"]) -> None:
        """Give a block its grid.

        Args:
            block: index of the block.
            center: center of its sphere, coordinates along the axes of the box.
            radius: radius of the sphere, world units.
            grid: signed distances in radii over the cube around the sphere, whose edges are parallel to these axes.
        """
        self.centers[block] = center.to(self.centers)
        self.radii[block] = radius
        self.grids[block] = nn.Parameter(grid.detach().to(self.coarse), requires_grad=False)

    @torch.no_grad()
    def weights(self, x: Float[Tensor, "p 3"]) -> Float[Tensor, "b p"]:
        """Weight of each block at points; that of the coarse grid is what is missing to 1."""
        y = x @ self.frame
        return torch.stack([self._weight(block, y) for block in range(len(self.grids))])

    def sdf(self, x: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        """Signed distances, world units."""
        y, coarse = x @ self.frame, trilinear.sample_volume(self.coarse, x)
        value = coarse
        for block, grid in enumerate(self.grids):
            if self.radii[block] == 0:
                continue
            index = torch.nonzero(self._may_have_weight(block, y))[:, 0]
            if len(index):
                inside = y[index]
                local = (inside - self.centers[block]) / self.radii[block]
                fine = self.radii[block] * trilinear.sample_volume(grid, local)
                value = value.index_add(0, index, self._weight(block, inside) * (fine - coarse[index]))
        return value

    def sdf_and_gradient(self, x: Float[Tensor, "p 3"]) -> tuple[Float[Tensor, " p"], Float[Tensor, "p 3"]]:
        """Signed distances and their exact gradients, which themselves have no gradient."""
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_(True)
            value = self.sdf(at)
            (slope,) = torch.autograd.grad(value.sum(), at)
        return value.detach(), slope

    @torch.no_grad()
    def volume(self, n: int) -> Float[Tensor, "n n n"]:
        """The field at the vertices of an n^3 grid over [-1, 1]^3, 'ij' = x, y, z; no gradients."""
        points = grid_points(n, self.coarse.device).view(-1, 3)
        return torch.cat([self.sdf(part) for part in points.split(_CHUNK)]).view(n, n, n)

    @torch.no_grad()
    def fit(self, volume: Float[Tensor, "n n n"], steps: int, generator: torch.Generator) -> None:
        """Set the coarse grid to a volume of signed distances."""
        del steps, generator
        self.coarse.copy_(trilinear.resample_volume(volume, len(self.coarse)))

    def _may_have_weight(self, block: int, y: Float[Tensor, "p 3"]) -> Tensor:
        """Whether points (p,) lie in the part of a block's sphere in which it has a weight."""
        y = y.detach()
        near = ((y > self.low[block] - self.ramp) & (y < self.high[block] + self.ramp)).all(dim=-1)
        return near & ((y - self.centers[block]).square().sum(dim=-1) < self.radii[block] ** 2)

    def _weight(self, block: int, y: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        """Weight of a block at points, given along the axes of the box."""
        radius = self.radii[block]
        if radius == 0:
            return torch.zeros_like(y[:, 0])
        rising = _smooth(0.5 + (y - self.low[block]) / (2 * self.ramp))
        falling = _smooth(0.5 + (y - self.high[block]) / (2 * self.ramp))
        to_sphere = 1 - (y - self.centers[block]).norm(dim=-1) / radius
        return (rising - falling).prod(dim=-1) * _smooth(to_sphere / _FADE)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take over the sizes of the grids in a checkpoint, which follow from the scene."""
        for block, grid in enumerate(self.grids):
            stored = state_dict.get(f"{prefix}grids.{block}")
            if stored is not None and stored.shape != grid.shape:
                self.grids[block] = _empty(len(stored)).to(self.coarse.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _empty(vertices: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(vertices, vertices, vertices), requires_grad=False)


def _smooth(t: Tensor) -> Tensor:
    """Polynomial step from 0 at t <= 0 to 1 at t >= 1, with a continuous derivative."""
    t = t.clamp(0, 1)
    return t * t * (3 - 2 * t)


def cells_of(
    low: Sequence[float], high: Sequence[float], counts: Sequence[int]
) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "b 3"]]:
    """Lowest and highest coordinates of the cells of a box that is cut into equal parts along each axis.

    The outermost cells are unbounded, so that every point lies in a cell.
    """
    bounds = []
    for begin, end, count in zip(low, high, counts):
        edges = torch.linspace(begin, end, count + 1)
        edges[0], edges[-1] = -torch.inf, torch.inf
        bounds.append(edges)
    index = torch.cartesian_prod(*(torch.arange(count) for count in counts)).view(-1, 3)
    lows = torch.stack([bounds[axis][index[:, axis]] for axis in range(3)], dim=-1)
    highs = torch.stack([bounds[axis][index[:, axis] + 1] for axis in range(3)], dim=-1)
    return lows, highs

# SPDX-License-Identifier: Apache-2.0
"""Encoding `grid`: the signed distance as a sum of trilinear grids, coarse to fine."""

from __future__ import annotations

from typing import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pmni_nerfstudio.fields import trilinear
from pmni_nerfstudio.fields.detail_block import DetailBlock
from pmni_nerfstudio.fields.levels import Levels
from pmni_nerfstudio.geometry.interpolation import grid_points


class SdfGrid(Levels):
    """Signed distances at the vertices of several grids, coarse to fine; finer levels store residuals of coarser ones.

    Each level is one parameter: a locked level is not evaluated and its gradient stays None, so that optimizers skip
    it. Outside the cube [-1, 1]^3 the field has the value of the cube's nearest point, a lower bound of the distance,
    which is a safe step for sphere tracing.

    Args:
        vertices: vertices per axis of each level, for instance (33, 65, 129), where cells halve from level to level.
        radius: radius of the initial sphere, world units.
        detail_vertices: vertices per axis of a `DetailBlock`, which replaces the levels in its cube once it has a place;
            0 for none.
    """

    def __init__(self, vertices: Sequence[int], radius: float, detail_vertices: int = 0) -> None:
        super().__init__(vertices)
        self.detail = DetailBlock(detail_vertices) if detail_vertices else None
        self.values = nn.ParameterList([nn.Parameter(torch.zeros(n, n, n)) for n in self.vertices])
        with torch.no_grad():
            self.values[0].copy_(grid_points(self.vertices[0], self.values[0].device).norm(dim=-1) - radius)

    def sdf(self, x: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        """Signed distances, world units."""
        x_t = x.t().contiguous()
        corners = (self._corners(level, x_t) for level in range(self.active_levels))
        value = torch.stack([trilinear.blend(*of_level)[0] for of_level in corners]).sum(0)
        if self.detail is None:
            return value
        index = torch.nonzero(self.detail.contains(x))[:, 0]
        return value.index_copy(0, index, self.detail.blended(x[index], value[index]))

    def sdf_and_gradient(self, x: Float[Tensor, "p 3"]) -> tuple[Float[Tensor, " p"], Float[Tensor, "p 3"]]:
        """Signed distances and their exact gradients, from the same corner values."""
        x_t = x.t().contiguous()
        values, slopes = [], []
        for level in range(self.active_levels):
            value, slope = trilinear.blend_with_gradient(*self._corners(level, x_t))
            values.append(value[0])
            slopes.append(slope[:, 0] * (0.5 * (self.vertices[level] - 1)))
        # Positions are clamped to the cube: the field is constant along an axis on which they lie outside.
        inside = x_t.abs() <= 1.0
        value, slope = torch.stack(values).sum(0), (torch.stack(slopes).sum(0) * inside).t().contiguous()
        if self.detail is None:
            return value, slope
        index = torch.nonzero(self.detail.contains(x))[:, 0]
        fine = self.detail.blended_with_gradient(x[index], value[index], slope[index])
        return value.index_copy(0, index, fine[0]), slope.index_copy(0, index, fine[1])

    @torch.no_grad()
    def volume(self, n: int) -> Float[Tensor, "n n n"]:
        """The field at the vertices of an n^3 grid over [-1, 1]^3, 'ij' = x, y, z; no gradients."""
        total = trilinear.resample_volume(self.values[0], n)
        for level in range(1, self.active_levels):
            total += trilinear.resample_volume(self.values[level], n)
        if self.detail is not None:
            points, flat = grid_points(n, total.device).view(-1, 3), total.view(-1)
            index = torch.nonzero(self.detail.contains(points))[:, 0]
            flat[index] = self.detail.blended(points[index], flat[index])
        return total

    @torch.no_grad()
    def fit(self, volume: Float[Tensor, "n n n"], steps: int, generator: torch.Generator) -> None:
        """Set all levels, locked or not, to represent a volume of signed distances.

        The sum of the first k levels equals the volume at the vertices of level k. The solution is direct; `steps` and
        `generator` are for encodings that are fitted by gradient descent.
        """
        del steps, generator
        for level, n in enumerate(self.vertices):
            target = trilinear.resample_volume(volume, n)
            for coarser in range(level):
                target -= trilinear.resample_volume(self.values[coarser], n)
            self.values[level].copy_(target)

    def _corners(
        self, level: int, x_t: Float[Tensor, "3 p"]
    ) -> tuple[Float[Tensor, "1 2 2 2 p"], Float[Tensor, "3 p"]]:
        """A level's values at the corners of the points' cells, and the points' positions in their cells."""
        n = self.vertices[level]
        cell, fraction = trilinear.locate(x_t, n)
        return trilinear.gather_corners(self.values[level].view(1, -1), trilinear.dense_index(cell, n)), fraction

# SPDX-License-Identifier: Apache-2.0
"""Signed distances on a fine grid over a cube that close-up views see, blended with the coarser field around it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pmni_nerfstudio.fields import trilinear

_MARGIN = 0.15
"""Width of the border over which block and surrounding field are blended, in half edges of the block."""


class DetailBlock(nn.Module):
    """Trilinear grid over an axis-aligned cube within [-1, 1]^3.

    The number of vertices is fixed, so that an optimizer may hold the values before the place of the block is known.
    A block without a place, whose half edge is zero, contains no point.

    Args:
        vertices: vertices per axis.
    """

    center: Tensor
    half_edge: Tensor

    def __init__(self, vertices: int) -> None:
        super().__init__()
        self.vertices = vertices
        self.values = nn.Parameter(torch.zeros(vertices, vertices, vertices))
        self.register_buffer("center", torch.zeros(3))
        self.register_buffer("half_edge", torch.zeros(()))

    @property
    def voxel(self) -> Float[Tensor, ""]:
        """Edge of a cell, world units; zero without a place."""
        return 2.0 * self.half_edge / (self.vertices - 1)

    @torch.no_grad()
    def place(self, center: Float[Tensor, "3"], half: float, sdf: Float[Tensor, "m m m"]) -> None:
        """Set the cube and its signed distances.

        Args:
            center: center of the cube, world units.
            half: half of its edge, world units.
            sdf: signed distances at the vertices of a grid over the cube, world units; resampled to the block's own.
        """
        self.center.copy_(center)
        self.half_edge.fill_(half)
        self.values.copy_(trilinear.resample_volume(sdf.to(self.values), self.vertices))

    @torch.no_grad()
    def contains(self, x: Float[Tensor, "p 3"]) -> Tensor:
        """Whether points (p,) lie in the cube, where the block has a weight."""
        return (x - self.center).abs().amax(dim=-1) < self.half_edge

    def weight(self, x: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        """Share of the block in the blended distance at points of the cube: 1 inside, falling to 0 at its faces."""
        along, _ = self._to_border(x).clamp(max=_MARGIN).div(_MARGIN).min(dim=-1)
        return along * along * (3 - 2 * along)

    def blended(self, x: Float[Tensor, "p 3"], around: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """Blend of the block's distances at points of the cube with those of the surrounding field."""
        corners, fraction = self._corners(x)
        return torch.lerp(around, trilinear.blend(corners, fraction)[0], self.weight(x))

    def blended_with_gradient(
        self, x: Float[Tensor, "p 3"], around: Float[Tensor, " p"], slope: Float[Tensor, "p 3"]
    ) -> tuple[Float[Tensor, " p"], Float[Tensor, "p 3"]]:
        """`blended` and its exact gradient, given the surrounding field's distance and gradient."""
        corners, fraction = self._corners(x)
        value, own = trilinear.blend_with_gradient(corners, fraction)
        own = own[:, 0].t() / self.voxel
        along, axis = self._to_border(x).clamp(max=_MARGIN).div(_MARGIN).min(dim=-1)
        weight = along * along * (3 - 2 * along)
        # The nearest face decides: along rises from it with slope 1 / (margin * half).
        side = -torch.sign(x - self.center).gather(1, axis[:, None])[:, 0]
        rise = 6 * along * (1 - along) * side / (_MARGIN * self.half_edge)
        by_weight = torch.zeros_like(slope).scatter(1, axis[:, None], (rise * (value[0] - around))[:, None])
        return torch.lerp(around, value[0], weight), torch.lerp(slope, own, weight[:, None]) + by_weight

    def _to_border(self, x: Float[Tensor, "p 3"]) -> Float[Tensor, "p 3"]:
        """Distance to the nearer face along each axis, in half edges."""
        return (1.0 - (x - self.center).abs() / self.half_edge).clamp(min=0.0)

    def _corners(self, x: Float[Tensor, "p 3"]) -> tuple[Float[Tensor, "1 2 2 2 p"], Float[Tensor, "3 p"]]:
        local = ((x - self.center) / self.half_edge).t().contiguous()
        cell, fraction = trilinear.locate(local, self.vertices)
        index = trilinear.dense_index(cell, self.vertices)
        return trilinear.gather_corners(self.values.view(1, -1), index), fraction

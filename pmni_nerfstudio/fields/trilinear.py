# SPDX-License-Identifier: Apache-2.0
"""Trilinear interpolation on lattices of vertices over the cube [-1, 1]^3, right to every order of derivative.

Everything is channel-first with the points last (``(3, P)``, ``(C, 8 P)``): on a CPU the one-dimensional gather and
scatter kernels of PyTorch are an order of magnitude faster than those that move short rows, and the blends that follow
run over contiguous memory. ``F.grid_sample`` is both slower here and has no second derivative in three dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Columns of a table: (C, N), (M,) -> (C, M). Linear in the table, so its derivatives are scatter and gather."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.columns = table.shape[1]
        return table.index_select(1, index)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _Scatter.apply(grad_outputs[0], index, ctx.columns), None  # type: ignore[return-value]


class _Scatter(torch.autograd.Function):
    """The transpose of `_Gather`: columns added up into a table of zeros, (C, M), (M,) -> (C, N)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, columns: int) -> Tensor:
        ctx.save_for_backward(index)
        table = values.new_zeros(values.shape[0], columns)
        return table.scatter_add_(1, index.expand_as(values), values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return _Gather.apply(grad_outputs[0], index), None, None  # type: ignore[return-value]


def gather_corners(table: Float[Tensor, "c n"], index: Int[Tensor, "8 p"]) -> Float[Tensor, "c 2 2 2 p"]:
    """Values at the eight corners of each point's cell.

    Args:
        table: a column an entry.
        index: columns of the table, corners in the order of `corner_offsets`.

    Returns:
        By channel and by the corner's x, y and z.
    """
    return _Gather.apply(table, index.reshape(-1)).view(table.shape[0], 2, 2, 2, index.shape[1])  # type: ignore[union-attr]


def corner_offsets(device: torch.device) -> Int[Tensor, "8 3"]:
    """The corners of the unit cell, x slowest, as int64."""
    bits = torch.arange(8, device=device)
    return torch.stack([bits >> 2, (bits >> 1) & 1, bits & 1], dim=-1)


def locate(x_t: Float[Tensor, "3 p"], vertices: int) -> tuple[Int[Tensor, "3 p"], Float[Tensor, "3 p"]]:
    """The cell of each point and where in the cell it lies. Outside the cube: of the nearest point of the cube.

    Args:
        x_t: positions, world units.
        vertices: lattice vertices an axis, the first at -1 and the last at 1.

    Returns:
        Cells, int64 in [0, vertices - 2], and fractions in [0, 1], differentiable.
    """
    scaled = (x_t.clamp(-1.0, 1.0) + 1.0) * (0.5 * (vertices - 1))
    cell = scaled.detach().floor().clamp_(max=vertices - 2)
    return cell.long(), scaled - cell


def dense_index(cell: Int[Tensor, "3 p"], vertices: int) -> Int[Tensor, "8 p"]:
    """The places of the cells' corners in a flattened (vertices,)*3 volume ('ij' = x, y, z)."""
    base = (cell[0] * vertices + cell[1]) * vertices + cell[2]
    dx, dy, dz = corner_offsets(cell.device).unbind(-1)
    return base + ((dx * vertices + dy) * vertices + dz)[:, None]


def blend(corners: Float[Tensor, "c 2 2 2 p"], fraction: Float[Tensor, "3 p"]) -> Float[Tensor, "c p"]:
    """Trilinear values of cells from their corners, at fractions of the cell."""
    value = corners
    for along in fraction:
        value = _mix(value, along)
    return value


def blend_with_gradient(
    corners: Float[Tensor, "c 2 2 2 p"], fraction: Float[Tensor, "3 p"]
) -> tuple[Float[Tensor, "c p"], Float[Tensor, "3 c p"]]:
    """Trilinear value and its exact derivative by the fractions.

    Both are differentiable in the corners and the fractions.
    """
    fx, fy, fz = fraction
    left, right = corners.unbind(1)
    y0, y1 = torch.lerp(left, right, fx).unbind(1)
    z0, z1 = torch.lerp(y0, y1, fy).unbind(1)
    by_x = _mix(_mix(right - left, fy), fz)
    by_y = _mix(y1 - y0, fz)
    return torch.lerp(z0, z1, fz), torch.stack([by_x, by_y, z1 - z0])


def _mix(values: Tensor, along: Tensor) -> Tensor:
    """Linear interpolation over the first axis of two that follows the channels."""
    # unbind and not two slices: its derivative is one stack, theirs are two volumes of zeros and a sum.
    low, high = values.unbind(1)
    return torch.lerp(low, high, along)


def sample_volume(volume: Float[Tensor, "n n n"], x: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
    """A dense volume over [-1, 1]^3, vertices on the faces, at points: the fast lookup for tracing.

    Args:
        volume: 'ij' = x, y, z.
        x: positions, world units; outside the cube the nearest point of the cube counts.

    Returns:
        Values, differentiable in the volume and in x.

    Raises:
        ValueError: if the volume isn't a cube of at least two vertices an axis.
    """
    check_volume(volume)
    n = volume.shape[0]
    cell, fraction = locate(x.reshape(-1, 3).t().contiguous(), n)
    corners = gather_corners(volume.reshape(1, -1), dense_index(cell, n))
    return blend(corners, fraction)[0].view(x.shape[:-1])


def check_volume(volume: Tensor) -> None:
    """Raise ValueError unless the volume is (n, n, n) with n >= 2."""
    if volume.dim() != 3 or len(set(volume.shape)) != 1 or volume.shape[0] < 2:
        raise ValueError(f"volume: expected (n, n, n) with n >= 2, got {tuple(volume.shape)}")


def resample_volume(volume: Float[Tensor, "m m m"], vertices: int) -> Float[Tensor, "n n n"]:
    """A volume's trilinear interpolant on another lattice of the same cube."""
    check_volume(volume)
    if volume.shape[0] == vertices:
        return volume.clone()
    size = (vertices, vertices, vertices)
    return torch.nn.functional.interpolate(volume[None, None], size=size, mode="trilinear", align_corners=True)[0, 0]


def lattice(vertices: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n n n 3"]:
    """Positions of the lattice's vertices, 'ij' = x, y, z, world units."""
    axis = torch.linspace(-1.0, 1.0, vertices, device=device, dtype=dtype)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)

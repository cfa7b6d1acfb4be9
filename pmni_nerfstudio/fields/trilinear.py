# SPDX-License-Identifier: Apache-2.0
"""Trilinear interpolation on grids over the cube [-1, 1]^3 that can be differentiated any number of times.

`F.grid_sample` has no second derivative in three dimensions, and is slower here. Arrays are channel-first with points
last, (3, P) and (C, 8 P): on a CPU PyTorch gathers and scatters single numbers an order of magnitude faster than short
rows, and the interpolation runs over contiguous memory.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Select columns of a table, (C, N), (M,) -> (C, M); the derivative is `_Scatter`."""

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
    """Sum columns into a table, (C, M), (M,) -> (C, N), the transpose of `_Gather`, which is its derivative."""

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
        table: one column per entry.
        index: table entries of the corners, x slowest, as from `dense_index`.

    Returns:
        Values by channel, the corner's x, y and z, and point.
    """
    return _Gather.apply(table, index.reshape(-1)).view(table.shape[0], 2, 2, 2, index.shape[1])  # type: ignore[union-attr]


def locate(x_t: Float[Tensor, "3 p"], vertices: int) -> tuple[Int[Tensor, "3 p"], Float[Tensor, "3 p"]]:
    """Cell of each point and position within the cell. Points outside the cube are clamped to it.

    Args:
        x_t: positions, world units.
        vertices: grid vertices per axis, the first at -1 and the last at 1.

    Returns:
        cell: int64 in [0, vertices - 2].
        fraction: position in the cell, in [0, 1]; differentiable.
    """
    scaled = (x_t.clamp(-1.0, 1.0) + 1.0) * (0.5 * (vertices - 1))
    cell = scaled.detach().floor().clamp_(max=vertices - 2)
    return cell.long(), scaled - cell


def dense_index(cell: Int[Tensor, "3 p"], vertices: int) -> Int[Tensor, "8 p"]:
    """Indices of the cells' corners, x slowest, in a flattened volume of `vertices`^3, 'ij' = x, y, z."""
    base = (cell[0] * vertices + cell[1]) * vertices + cell[2]
    corner = torch.arange(8, device=cell.device)
    dx, dy, dz = corner >> 2, (corner >> 1) & 1, corner & 1
    return base + ((dx * vertices + dy) * vertices + dz)[:, None]


def blend(corners: Float[Tensor, "c 2 2 2 p"], fraction: Float[Tensor, "3 p"]) -> Float[Tensor, "c p"]:
    """Trilinear interpolation of corner values."""
    value = corners
    for along in fraction:
        value = _mix(value, along)
    return value


def blend_with_gradient(
    corners: Float[Tensor, "c 2 2 2 p"], fraction: Float[Tensor, "3 p"]
) -> tuple[Float[Tensor, "c p"], Float[Tensor, "3 c p"]]:
    """Trilinear interpolation and its derivative with respect to `fraction`; both are differentiable."""
    fx, fy, fz = fraction
    left, right = corners.unbind(1)
    y0, y1 = torch.lerp(left, right, fx).unbind(1)
    z0, z1 = torch.lerp(y0, y1, fy).unbind(1)
    by_x = _mix(_mix(right - left, fy), fz)
    by_y = _mix(y1 - y0, fz)
    return torch.lerp(z0, z1, fz), torch.stack([by_x, by_y, z1 - z0])


def _mix(values: Tensor, along: Tensor) -> Tensor:
    """Linear interpolation over the axis of length two that follows the channels."""
    # The derivative of unbind is one stack; that of two slices would be two volumes of zeros and their sum.
    low, high = values.unbind(1)
    return torch.lerp(low, high, along)


def sample_volume(volume: Float[Tensor, "n n n"], x: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
    """Trilinear values of a volume over [-1, 1]^3 at points; differentiable in both.

    Args:
        volume: values at the vertices of a grid, the outermost on the cube's faces, 'ij' = x, y, z.
        x: positions, world units; clamped to the cube.

    Raises:
        ValueError: the volume is not a cube of at least two vertices per axis.
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
    """Resample a volume to another resolution by trilinear interpolation."""
    check_volume(volume)
    if volume.shape[0] == vertices:
        return volume.clone()
    size = (vertices, vertices, vertices)
    return torch.nn.functional.interpolate(volume[None, None], size=size, mode="trilinear", align_corners=True)[0, 0]

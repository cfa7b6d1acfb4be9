# SPDX-License-Identifier: Apache-2.0
"""Trilinear interpolation on lattices of vertices over the cube [-1, 1]^3, right to every order of derivative.

Everything is channel-first with the points last (``(3, P)``, ``(C, 8 P)``): on a CPU the one-dimensional gather and
scatter kernels of PyTorch are an order of magnitude faster than those that move short rows, and the blends that follow
run over contiguous memory. ``F.grid_sample`` is both slower here and has no second derivative in three dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
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


def gather_corners(table: Tensor, index: Tensor) -> Tensor:
    """Values at the eight corners of each point's cell.

    Args:
        table: (C, N), a column an entry.
        index: (8, P), columns of the table, corners in the order of `corner_offsets`.

    Returns:
        (C, 2, 2, 2, P): by channel and by the corner's x, y and z.
    """
    return _Gather.apply(table, index.reshape(-1)).view(table.shape[0], 2, 2, 2, index.shape[1])  # type: ignore[union-attr]


def corner_offsets(device: torch.device) -> Tensor:
    """(8, 3) int64: the corners of the unit cell, x slowest."""
    bits = torch.arange(8, device=device)
    return torch.stack([bits >> 2, (bits >> 1) & 1, bits & 1], dim=-1)


def locate(x_t: Tensor, vertices: int) -> tuple[Tensor, Tensor]:
    """The cell of each point and where in the cell it lies. Outside the cube: of the nearest point of the cube.

    Args:
        x_t: (3, P) positions, world units.
        vertices: lattice vertices an axis, the first at -1 and the last at 1.

    Returns:
        (3, P) int64 cells in [0, vertices - 2], and (3, P) fractions in [0, 1], differentiable.
    """
    scaled = (x_t.clamp(-1.0, 1.0) + 1.0) * (0.5 * (vertices - 1))
    cell = scaled.detach().floor().clamp_(max=vertices - 2)
    return cell.long(), scaled - cell


def dense_index(cell: Tensor, vertices: int) -> Tensor:
    """(3, P) cells -> (8, P) int64: the corners' places in a flattened (vertices,)*3 volume ('ij' = x, y, z)."""
    base = (cell[0] * vertices + cell[1]) * vertices + cell[2]
    strides = torch.tensor([vertices * vertices, vertices, 1], device=cell.device)
    return base + (corner_offsets(cell.device) * strides).sum(-1, keepdim=True)


def blend(corners: Tensor, fraction: Tensor) -> Tensor:
    """Trilinear value: corners (C, 2, 2, 2, P), fractions (3, P) -> (C, P)."""
    along_x = torch.lerp(corners[:, 0], corners[:, 1], fraction[0])
    along_xy = torch.lerp(along_x[:, 0], along_x[:, 1], fraction[1])
    return torch.lerp(along_xy[:, 0], along_xy[:, 1], fraction[2])


def blend_with_gradient(corners: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """Trilinear value and its exact derivative by the fractions.

    Args:
        corners: (C, 2, 2, 2, P).
        fraction: (3, P).

    Returns:
        (C, P) values and (3, C, P) derivatives, both differentiable in the corners and the fractions.
    """
    fx, fy, fz = fraction
    along_x = torch.lerp(corners[:, 0], corners[:, 1], fx)
    along_xy = torch.lerp(along_x[:, 0], along_x[:, 1], fy)
    value = torch.lerp(along_xy[:, 0], along_xy[:, 1], fz)
    step_x = corners[:, 1] - corners[:, 0]
    step_x = torch.lerp(step_x[:, 0], step_x[:, 1], fy)
    step_y = along_x[:, 1] - along_x[:, 0]
    by_x = torch.lerp(step_x[:, 0], step_x[:, 1], fz)
    by_y = torch.lerp(step_y[:, 0], step_y[:, 1], fz)
    return value, torch.stack([by_x, by_y, along_xy[:, 1] - along_xy[:, 0]])


def sample_volume(volume: Tensor, x: Tensor) -> Tensor:
    """A dense volume over [-1, 1]^3, vertices on the faces, at points: the fast lookup for tracing.

    Args:
        volume: (n, n, n), 'ij' = x, y, z.
        x: (*b, 3) positions, world units; outside the cube the nearest point of the cube counts.

    Returns:
        (*b,) values, differentiable in the volume and in x.

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


def resample_volume(volume: Tensor, vertices: int) -> Tensor:
    """A volume's trilinear interpolant on another lattice of the same cube: (m, m, m) -> (vertices,)*3."""
    check_volume(volume)
    if volume.shape[0] == vertices:
        return volume.clone()
    size = (vertices, vertices, vertices)
    return torch.nn.functional.interpolate(volume[None, None], size=size, mode="trilinear", align_corners=True)[0, 0]


def lattice(vertices: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """(vertices, vertices, vertices, 3): positions of the lattice's vertices, 'ij' = x, y, z, world units."""
    axis = torch.linspace(-1.0, 1.0, vertices, device=device, dtype=dtype)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)

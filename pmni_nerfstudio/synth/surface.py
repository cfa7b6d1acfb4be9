# SPDX-License-Identifier: Apache-2.0
"""Ground truth mesh of a shape: marching cubes, then projection of every vertex onto the exact surface."""

from __future__ import annotations

import numpy as np
import torch
import trimesh
from skimage.measure import marching_cubes

from pmni_nerfstudio.geometry.camera_rings import OBJECT_RADIUS
from pmni_nerfstudio.synth.shapes import Shape
from pmni_nerfstudio.threads import one_thread

BLOCK = 8
"""Samples along each side of a block; blocks that cannot contain the surface get a single value."""
_NEWTON_STEPS = 8
"""Newton steps that project each vertex onto the surface."""


@one_thread()
def surface_mesh(shape: Shape, resolution: int = 256) -> trimesh.Trimesh:
    """Watertight mesh of a shape's surface in the shape's own frame, with outward normals.

    All vertices lie on the surface; sharp edges are beveled by at most half the sample spacing.

    Args:
        shape: the solid.
        resolution: samples along each side of the cube, rounded up to whole blocks.
    """
    blocks = -(-resolution // BLOCK)
    n = blocks * BLOCK
    half = 1.05 * OBJECT_RADIUS
    spacing = 2 * half / (n - 1)
    axis = torch.linspace(-half, half, n, dtype=torch.float64)
    centers = axis.view(blocks, BLOCK).mean(1)
    grid = torch.stack(torch.meshgrid(centers, centers, centers, indexing="ij"), dim=-1)
    coarse = shape.sdf(grid)
    reach = (
        spacing * BLOCK / 2 * 3**0.5
    )  # from a block's center to its corners, halfway to the samples of the next block
    values = coarse.to(torch.float32)[:, :, :, None, None, None].repeat(1, 1, 1, BLOCK, BLOCK, BLOCK)

    offset = (torch.arange(BLOCK, dtype=torch.float64) - (BLOCK - 1) / 2) * spacing
    local = torch.stack(torch.meshgrid(offset, offset, offset, indexing="ij"), dim=-1)
    for near in torch.nonzero(coarse.abs() <= shape.slope * reach).split(512):
        x, y, z = near.unbind(-1)
        values[x, y, z] = shape.sdf(grid[x, y, z][:, None, None, None] + local).to(torch.float32)
    volume = values.permute(0, 3, 1, 4, 2, 5).reshape(n, n, n).numpy()

    vertices, faces, _, _ = marching_cubes(volume, 0.0, spacing=(spacing,) * 3, gradient_direction="descent")
    x = torch.from_numpy(vertices.astype(np.float64)) - half
    for _ in range(_NEWTON_STEPS):
        value, gradient = shape.gradient(x)
        x = x - (value / gradient.square().sum(-1))[:, None] * gradient
    return trimesh.Trimesh(x.numpy(), faces, process=False)

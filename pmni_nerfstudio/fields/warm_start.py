# SPDX-License-Identifier: Apache-2.0
"""Sample points near the surface of a volume, for fitting a field to it and measuring the error."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pmni_nerfstudio.fields.trilinear import check_volume
from pmni_nerfstudio.geometry.interpolation import grid_points

_BAND_VOXELS = 2.0


class SurfaceBand:
    """The vertices of a volume within two voxels of its surface, as centers of random samples.

    Args:
        volume: (n, n, n) signed distances over [-1, 1]^3, vertices on the faces, 'ij' = x, y, z.

    Raises:
        ValueError: the volume is not a cube, not finite, or has no surface.
    """

    def __init__(self, volume: Float[Tensor, "n n n"]) -> None:
        check_volume(volume)
        if not torch.isfinite(volume).all():
            raise ValueError("sdf_grid: contains values that are not finite")
        n = volume.shape[0]
        self.voxel = 2.0 / (n - 1)
        near = volume.abs() < _BAND_VOXELS * self.voxel
        if not (near & (volume < 0)).any() or not (near & (volume > 0)).any():
            raise ValueError(
                "sdf_grid: contains no surface; expected distances of both signs, in units of half the cube's edge"
            )
        self.vertices = grid_points(n, volume.device, volume.dtype)[near]

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "m 3"]:
        """Random points (count, 3) in the cube, each within a voxel of a vertex of the band; `generator` on the CPU."""
        picked = torch.randint(len(self.vertices), (count,), generator=generator)
        shift = torch.rand(count, 3, generator=generator) * 2.0 - 1.0
        base = self.vertices[picked.to(self.vertices.device)]
        return (base + shift.to(base) * self.voxel).clamp(-1.0, 1.0)

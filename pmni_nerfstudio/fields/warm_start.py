# SPDX-License-Identifier: Apache-2.0
"""Points near the surface of a given volume of signed distances: where a warm start is fitted and judged."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pmni_nerfstudio.fields.trilinear import check_volume, lattice

_BAND_VOXELS = 2.0


class SurfaceBand:
    """The volume's vertices within two voxels of its surface, and points drawn about them.

    Args:
        volume: (n, n, n) signed distances over [-1, 1]^3, vertices on the faces, 'ij' = x, y, z.

    Raises:
        ValueError: if the volume isn't a cube, holds a number that isn't finite, or has no surface.
    """

    def __init__(self, volume: Float[Tensor, "n n n"]) -> None:
        check_volume(volume)
        if not torch.isfinite(volume).all():
            raise ValueError("sdf_grid: holds numbers that aren't finite")
        n = volume.shape[0]
        self.voxel = 2.0 / (n - 1)
        near = volume.abs() < _BAND_VOXELS * self.voxel
        if not (near & (volume < 0)).any() or not (near & (volume > 0)).any():
            raise ValueError(
                "sdf_grid: no surface in it; expected distances of both signs, in units of the cube's half edge"
            )
        self.vertices = lattice(n, volume.device, volume.dtype)[near]

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "m 3"]:
        """(count, 3) points, each within a voxel of a vertex of the band, inside the cube. The generator is a CPU's."""
        picked = torch.randint(len(self.vertices), (count,), generator=generator)
        shift = torch.rand(count, 3, generator=generator) * 2.0 - 1.0
        base = self.vertices[picked.to(self.vertices.device)]
        return (base + shift.to(base) * self.voxel).clamp(-1.0, 1.0)

# SPDX-License-Identifier: Apache-2.0
"""Feature encodings of positions in [-1, 1]^3, and `dense`: features on a few dense grids."""

from __future__ import annotations

from typing import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pmni_nerfstudio.fields.levels import Levels
from pmni_nerfstudio.fields.trilinear import blend, dense_index, gather_corners, locate


class LevelEncoding(Levels):
    """Interface of `dense` and `hash`: learned features at the vertices of several grids, trilinearly interpolated.

    Features start at zero, so that unlocking a level does not change the field at that moment; the random weights of
    the layer that follows give the features different gradients.

    Args:
        vertices: vertices per axis of each level, increasing.
        features_per_level: features per vertex.

    Raises:
        PmniError: the levels do not increase.
    """

    def __init__(self, vertices: Sequence[int], features_per_level: int) -> None:
        super().__init__(vertices)
        self.features_per_level = features_per_level

    @property
    def num_features(self) -> int:
        """Number of features of all levels, locked ones included."""
        return self.num_levels * self.features_per_level

    def forward(self, x_t: Float[Tensor, "3 p"]) -> Float[Tensor, "f p"]:
        """Features of the unlocked levels at positions, coarse first: f = active_levels * features_per_level."""
        raise NotImplementedError


class TableEncoding(LevelEncoding):
    """Encoding with one table of PyTorch parameters per level; a locked level is not evaluated and gets no gradient.

    Subclasses define the size of a level's table and the entries of a cell's corners.
    """

    def __init__(self, vertices: Sequence[int], features_per_level: int) -> None:
        super().__init__(vertices, features_per_level)
        self.tables = nn.ParameterList(
            [nn.Parameter(torch.zeros(features_per_level, self.entries(n))) for n in self.vertices]
        )

    def entries(self, vertices: int) -> int:
        """Number of table entries of a level with this many vertices per axis."""
        raise NotImplementedError

    def corner_index(self, cell: Int[Tensor, "3 p"], vertices: int) -> Int[Tensor, "8 p"]:
        """Table entries of the corners of cells."""
        raise NotImplementedError

    def forward(self, x_t: Float[Tensor, "3 p"]) -> Float[Tensor, "f p"]:
        features = []
        for level in range(self.active_levels):
            n = self.vertices[level]
            cell, fraction = locate(x_t, n)
            features.append(blend(gather_corners(self.tables[level], self.corner_index(cell, n)), fraction))
        return torch.cat(features)


class DenseEncoding(TableEncoding):
    """Features at every vertex of a few levels: no collisions, and faster than hashing on a CPU."""

    def entries(self, vertices: int) -> int:
        return vertices**3

    def corner_index(self, cell: Int[Tensor, "3 p"], vertices: int) -> Int[Tensor, "8 p"]:
        return dense_index(cell, vertices)

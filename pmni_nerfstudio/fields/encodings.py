# SPDX-License-Identifier: Apache-2.0
"""Feature encodings of positions in [-1, 1]^3, on levels that unlock coarse to fine; `dense` is a few feature grids."""

from __future__ import annotations

from typing import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pmni_nerfstudio.fields.levels import Levels
from pmni_nerfstudio.fields.trilinear import blend, dense_index, gather_corners, locate


class LevelEncoding(Levels):
    """Learnt features at the vertices of a few lattices, interpolated: the interface of `dense` and `hash`.

    Features start at zero, so that unlocking a level changes nothing at that moment; the random weights of the layer
    that follows give the features different gradients.

    Args:
        vertices: vertices an axis of each level, growing.
        features_per_level: features of each vertex.

    Raises:
        PmniError: if the levels don't grow.
    """

    def __init__(self, vertices: Sequence[int], features_per_level: int) -> None:
        super().__init__(vertices)
        self.features_per_level = features_per_level

    @property
    def num_features(self) -> int:
        """Features of all levels, locked ones included."""
        return self.num_levels * self.features_per_level

    def forward(self, x_t: Float[Tensor, "3 p"]) -> Float[Tensor, "f p"]:
        """Features of the unlocked levels at positions, coarse first: f = active_levels * features_per_level."""
        raise NotImplementedError


class TableEncoding(LevelEncoding):
    """Levels held in tables of PyTorch parameters, one a level: a locked one is not looked up and gets no gradient.

    A subclass says how many entries a level's table has and where a cell's corners lie in it.
    """

    def __init__(self, vertices: Sequence[int], features_per_level: int) -> None:
        super().__init__(vertices, features_per_level)
        self.tables = nn.ParameterList(
            [nn.Parameter(torch.zeros(features_per_level, self.entries(n))) for n in self.vertices]
        )

    def entries(self, vertices: int) -> int:
        """Entries in the table of a level with so many vertices an axis."""
        raise NotImplementedError

    def corner_index(self, cell: Int[Tensor, "3 p"], vertices: int) -> Int[Tensor, "8 p"]:
        """Where the corners of cells lie in the table of their level."""
        raise NotImplementedError

    def forward(self, x_t: Float[Tensor, "3 p"]) -> Float[Tensor, "f p"]:
        features = []
        for level in range(self.active_levels):
            n = self.vertices[level]
            cell, fraction = locate(x_t, n)
            features.append(blend(gather_corners(self.tables[level], self.corner_index(cell, n)), fraction))
        return torch.cat(features)


class DenseEncoding(TableEncoding):
    """A feature at every vertex of every level: few levels, no collisions, the faster choice on a CPU."""

    def entries(self, vertices: int) -> int:
        return vertices**3

    def corner_index(self, cell: Int[Tensor, "3 p"], vertices: int) -> Int[Tensor, "8 p"]:
        return dense_index(cell, vertices)

# SPDX-License-Identifier: Apache-2.0
"""`hash`: a multi-resolution hash encoding (Müller et al., Instant Neural Graphics Primitives, SIGGRAPH 2022).

tinycudann's kernels where they are installed and a GPU is there, PyTorch elsewhere: the same idea, but not the same
parameters, so a checkpoint belongs to the implementation that wrote it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from nerfstudio.utils.external import TCNN_EXISTS, tcnn
from torch import Tensor

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.fields.encodings import LevelEncoding, TableEncoding
from pmni_nerfstudio.fields.trilinear import dense_index

# The primes of the paper; the first coordinate stays as it is, for cache coherence.
_PRIMES = (1, 2654435761, 805459861)


def tcnn_usable() -> bool:
    """Whether tinycudann is installed and has a GPU to run on."""
    return TCNN_EXISTS and torch.cuda.is_available()


def level_vertices(levels: int, base: int, growth: float) -> tuple[int, ...]:
    """Vertices an axis of a geometric ladder of levels: round(base * growth**level)."""
    return tuple(round(base * growth**level) for level in range(levels))


class HashEncoding(TableEncoding):
    """The encoding in PyTorch: levels that fit in a table are dense, and only larger ones are hashed.

    Args:
        levels: number of levels.
        base: vertices an axis of the coarsest level.
        growth: ratio of vertices from level to level.
        log2_table: the largest table has 2**log2_table entries.
        features_per_level: features of each entry.

    Raises:
        PmniError: if the levels don't grow.
    """

    def __init__(self, levels: int, base: int, growth: float, log2_table: int, features_per_level: int) -> None:
        self.table_entries = 2**log2_table  # before the base class, whose constructor asks for entries()
        super().__init__(level_vertices(levels, base, growth), features_per_level)

    def entries(self, vertices: int) -> int:
        return min(vertices**3, self.table_entries)

    def corner_index(self, cell: Int[Tensor, "3 p"], vertices: int) -> Int[Tensor, "8 p"]:
        if vertices**3 <= self.table_entries:
            return dense_index(cell, vertices)
        # Products before corners: two an axis instead of eight. int64 holds them: 2^11 vertices * 2^32.
        x, y, z = (torch.stack([along, along + 1]) * prime for along, prime in zip(cell, _PRIMES))
        hashed = x[:, None, None] ^ y[:, None] ^ z
        return (hashed & (self.table_entries - 1)).view(8, -1)


class TcnnHashEncoding(LevelEncoding):
    """The encoding in tinycudann (float32, second derivatives included). Same arguments as `HashEncoding`.

    Locked levels are computed with the others, since the kernel knows no fewer, and dropped before they count.
    """

    def __init__(self, levels: int, base: int, growth: float, log2_table: int, features_per_level: int) -> None:
        super().__init__(level_vertices(levels, base, growth), features_per_level)
        if not tcnn_usable():
            raise PmniError("hash encoding: tinycudann needs a GPU and its package; set hash-implementation to torch")
        self.encoding = tcnn.Encoding(
            n_input_dims=3,
            encoding_config={
                "otype": "HashGrid",
                "n_levels": levels,
                "n_features_per_level": features_per_level,
                "log2_hashmap_size": log2_table,
                "base_resolution": base,
                "per_level_scale": growth,
                "interpolation": "Linear",
            },
            dtype=torch.float32,
        )
        with torch.no_grad():
            self.encoding.params.zero_()

    def forward(self, x_t: Float[Tensor, "3 p"]) -> Float[Tensor, "f p"]:
        features = self.encoding((x_t.t().clamp(-1.0, 1.0) + 1.0) * 0.5)
        return features.t()[: self.active_levels * self.features_per_level]

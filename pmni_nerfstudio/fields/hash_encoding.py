# SPDX-License-Identifier: Apache-2.0
"""Encoding `hash`: multi-resolution hash tables of features (Müller et al., Instant NGP, SIGGRAPH 2022).

There are two implementations. tinycudann, NVIDIA's CUDA kernels, is used where it is installed and a GPU is available.
The one in PyTorch is used everywhere else, needs nothing to be compiled, and also runs on CPUs. Their parameters are
laid out differently, so a checkpoint can be loaded only with the implementation that wrote it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from nerfstudio.utils.external import TCNN_EXISTS, tcnn
from torch import Tensor

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.fields.encodings import LevelEncoding, TableEncoding
from pmni_nerfstudio.fields.trilinear import dense_index

PRIMES = (1, 2654435761, 805459861)
"""Primes of the paper by axis; the first coordinate is not scrambled, for cache coherence."""


def tcnn_usable() -> bool:
    """Whether tinycudann is installed and a GPU is available."""
    return TCNN_EXISTS and torch.cuda.is_available()


def level_vertices(levels: int, base: int, growth: float) -> tuple[int, ...]:
    """Vertices per axis of levels in geometric progression: round(base * growth**level)."""
    return tuple(round(base * growth**level) for level in range(levels))


class HashEncoding(TableEncoding):
    """Hash encoding in PyTorch. Levels with no more vertices than table entries are dense; only finer ones are hashed.

    Args:
        levels: number of levels.
        base: vertices per axis of the coarsest level.
        growth: ratio of the vertices per axis from level to level.
        log2_table: logarithm of the maximum number of entries per table.
        features_per_level: features per entry.

    Raises:
        PmniError: the levels do not increase.
    """

    def __init__(self, levels: int, base: int, growth: float, log2_table: int, features_per_level: int) -> None:
        self.table_entries = 2**log2_table  # the base class' constructor calls entries()
        super().__init__(level_vertices(levels, base, growth), features_per_level)

    def entries(self, vertices: int) -> int:
        return min(vertices**3, self.table_entries)

    def corner_index(self, cell: Int[Tensor, "3 p"], vertices: int) -> Int[Tensor, "8 p"]:
        if vertices**3 <= self.table_entries:
            return dense_index(cell, vertices)
        # Multiply before combining corners: two products per axis instead of eight. 2^11 vertices * 2^32 fit in int64.
        x, y, z = (torch.stack([along, along + 1]) * prime for along, prime in zip(cell, PRIMES))
        hashed = x[:, None, None] ^ y[:, None] ^ z
        return (hashed & (self.table_entries - 1)).view(8, -1)


class TcnnHashEncoding(LevelEncoding):
    """Hash encoding in tinycudann: float32, twice differentiable. The arguments are those of `HashEncoding`.

    The kernel always evaluates all levels; features of locked levels are discarded.
    """

    def __init__(self, levels: int, base: int, growth: float, log2_table: int, features_per_level: int) -> None:
        super().__init__(level_vertices(levels, base, growth), features_per_level)
        if not tcnn_usable():
            raise PmniError(
                "hash encoding: tinycudann is not installed or there is no GPU; use hash-implementation torch"
            )
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

# SPDX-License-Identifier: Apache-2.0
"""Levels of detail that unlock coarse to fine: the base class of all encodings."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor, nn

from pmni_nerfstudio.errors import PmniError


class Levels(nn.Module):
    """Grids over [-1, 1]^3, coarse to fine, of which the first `active_levels` are unlocked.

    The number of unlocked levels is a buffer, so that checkpoints contain it; a Python copy avoids waiting for the GPU
    in every forward pass.

    Args:
        vertices: vertices per axis of each level, increasing.

    Raises:
        PmniError: there is no level, a level has fewer than two vertices per axis, or the levels do not increase.
    """

    active_buffer: Tensor

    def __init__(self, vertices: Sequence[int]) -> None:
        super().__init__()
        self.vertices = tuple(int(n) for n in vertices)
        if not self.vertices or self.vertices[0] < 2 or any(b <= a for a, b in zip(self.vertices, self.vertices[1:])):
            raise PmniError(f"field: the levels' vertices per axis must increase from at least 2, got {self.vertices}")
        self._active_levels = len(self.vertices)
        self.register_buffer("active_buffer", torch.tensor(self._active_levels))

    @property
    def num_levels(self) -> int:
        """Number of levels, locked ones included."""
        return len(self.vertices)

    @property
    def active_levels(self) -> int:
        """Number of unlocked levels."""
        return self._active_levels

    @property
    def active_voxel(self) -> float:
        """Edge of the finest unlocked cell, world units."""
        return 2.0 / (self.vertices[self._active_levels - 1] - 1)

    def set_active_levels(self, count: int) -> None:
        """Unlock the first `count` levels and lock the rest.

        Raises:
            ValueError: `count` is not between 1 and the number of levels.
        """
        if not 1 <= count <= self.num_levels:
            raise ValueError(f"count: expected 1 to {self.num_levels} levels, got {count}")
        if count != self._active_levels:
            self._active_levels = count
            self.active_buffer.fill_(count)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._active_levels = int(self.active_buffer)


def training_bytes(vertices: Sequence[int]) -> int:
    """Memory that grids of single numbers take in training: values, gradients and two moments of Adam, each float32.

    Args:
        vertices: vertices per axis of each level.
    """
    return 4 * 4 * sum(n**3 for n in vertices)

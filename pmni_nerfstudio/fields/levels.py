# SPDX-License-Identifier: Apache-2.0
"""Levels that unlock coarse to fine: what every encoding of the field has in common."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor, nn

from pmni_nerfstudio.errors import PmniError


class Levels(nn.Module):
    """A stack of lattices over [-1, 1]^3 of which the first `active_levels` count.

    The count lives in a buffer, so that checkpoints hold it; a Python copy beside it spares every forward pass a
    wait for the GPU.

    Args:
        vertices: vertices an axis of each level, growing.

    Raises:
        PmniError: if there is no level, a level has fewer than two vertices, or they don't grow.
    """

    active_buffer: Tensor

    def __init__(self, vertices: Sequence[int]) -> None:
        super().__init__()
        self.vertices = tuple(int(n) for n in vertices)
        if not self.vertices or self.vertices[0] < 2 or any(b <= a for a, b in zip(self.vertices, self.vertices[1:])):
            raise PmniError(f"field: vertices per axis of the levels must grow from 2 or more, got {self.vertices}")
        self._active_levels = len(self.vertices)
        self.register_buffer("active_buffer", torch.tensor(self._active_levels))

    @property
    def num_levels(self) -> int:
        """Levels in all, locked ones included."""
        return len(self.vertices)

    @property
    def active_levels(self) -> int:
        """Levels that count, coarse to fine."""
        return self._active_levels

    @property
    def active_voxel(self) -> float:
        """Edge of the finest unlocked cell, world units."""
        return 2.0 / (self.vertices[self._active_levels - 1] - 1)

    def set_active_levels(self, count: int) -> None:
        """Unlock the first `count` levels and lock the rest.

        Raises:
            ValueError: if the count isn't between 1 and the number of levels.
        """
        if not 1 <= count <= self.num_levels:
            raise ValueError(f"count: expected 1 to {self.num_levels} levels, got {count}")
        if count != self._active_levels:
            self._active_levels = count
            self.active_buffer.fill_(count)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._active_levels = int(self.active_buffer)

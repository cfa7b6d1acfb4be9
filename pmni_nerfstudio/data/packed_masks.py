# SPDX-License-Identifier: Apache-2.0
"""Masks of many views at one bit a pixel, unpacked one view at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, overload

import numpy as np
from jaxtyping import Bool


class PackedMasks(Sequence[np.ndarray]):
    """Masks (N, H, W) that are read and written view by view; all are false at first."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._rows = np.zeros((shape[0], shape[1], -(-shape[2] // 8)), dtype=np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    @overload
    def __getitem__(self, view: int) -> Bool[np.ndarray, "h w"]: ...
    @overload
    def __getitem__(self, view: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, view: int | slice) -> Bool[np.ndarray, "h w"] | Sequence[np.ndarray]:
        if isinstance(view, slice):
            raise TypeError("packed masks are read one view at a time")
        return np.unpackbits(self._rows[view], axis=1, count=self.shape[2]).view(bool)

    def __setitem__(self, view: int, mask: Bool[np.ndarray, "h w"]) -> None:
        self._rows[view] = np.packbits(mask, axis=1)


Masks: TypeAlias = "Bool[np.ndarray, 'n h w'] | PackedMasks"
"""Masks of N views of equal size: `shape`, `len`, iteration and the mask of one view work for both kinds."""

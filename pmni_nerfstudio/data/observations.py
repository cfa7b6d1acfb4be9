# SPDX-License-Identifier: Apache-2.0
"""Observations of a capture without poses: masks, normal maps and intrinsics of its views."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True, eq=False)
class Observations:
    """Observations of n views, without poses; the maps of all views have the same size."""

    names: tuple[str, ...]
    """Name of each view: the stem of its files."""
    normals: Float[np.ndarray, "n h w 3"]
    """OpenCV camera axes, unit length on the mask and zero off it."""
    masks: Bool[np.ndarray, "n h w"]
    """True on the object."""
    K: Float[np.ndarray, "n 3 3"]
    """Intrinsics in pixels, pixel centers at integers."""

    @property
    def num_views(self) -> int:
        """Number of views n."""
        return len(self.masks)

    @property
    def height(self) -> int:
        """Height of all maps, in pixels."""
        return self.masks.shape[1]

    @property
    def width(self) -> int:
        """Width of all maps, in pixels."""
        return self.masks.shape[2]

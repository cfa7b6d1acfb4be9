# SPDX-License-Identifier: Apache-2.0
"""Observations of a capture without poses: masks, normal maps and intrinsics of its views."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class Observations:
    """Observations of n views, without poses.

    The maps of all views have the same size: those of smaller frames are padded at the right and below.
    """

    names: tuple[str, ...]
    """Name of each view: the stem of its files."""
    normals: Float[np.ndarray, "n h w 3"]
    """OpenCV camera axes: unit length where a normal was measured, zero elsewhere."""
    masks: Bool[np.ndarray, "n h w"]
    """True on the object: its silhouette, whether or not it has normals there."""
    K: Float[np.ndarray, "n 3 3"]
    """Intrinsics in pixels, pixel centers at integers."""
    unknown: Bool[np.ndarray, "n h w"] | None = field(default=None, kw_only=True)
    """True off the mask where something else stands in front, beyond the view's frame, and along the border of a close-up
    (see close_ups.py): neither object nor background. None if there is no such pixel."""
    sizes: Int[np.ndarray, "n 2"] | None = field(default=None, kw_only=True)
    """Width and height of each view's frame, in pixels, if they differ; None if all have the size of the maps."""

    @property
    def possible(self) -> Bool[np.ndarray, "n h w"]:
        """True where the object may be: on the mask and on unknown pixels; the masks themselves if there are none.

        What carves the object, such as the visual hull, uses this silhouette.
        """
        return self.masks if self.unknown is None else self.masks | self.unknown

    @cached_property
    def valid(self) -> Bool[np.ndarray, "n h w"]:
        """True on mask pixels with a normal; the masks themselves if all have one.

        Shadows, highlights and the blind spots of a scanner are holes: part of the mask, but not valid.
        """
        valid = np.empty_like(self.masks)
        for view, (normals, mask) in enumerate(zip(self.normals, self.masks)):  # one by one, against a large copy
            valid[view] = mask & normals.any(axis=-1)
        return self.masks if np.array_equal(valid, self.masks) else valid

    @property
    def has_holes(self) -> bool:
        """Whether mask pixels of any view have no normal."""
        return self.valid is not self.masks

    def frame(self, view: int) -> tuple[slice, slice]:
        """Rows and columns of a view's own frame, without padding."""
        width, height = (self.width, self.height) if self.sizes is None else self.sizes[view]
        return slice(0, int(height)), slice(0, int(width))

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

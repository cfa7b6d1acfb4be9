# SPDX-License-Identifier: Apache-2.0
"""Pixels of the views that show a block.

A mask tells that the ray of a pixel meets the object, not where. The registered surface tells the place: of the pixels on
the mask, those whose rays first meet it in a block are object for this block, and all others are unknown, since the block
may continue behind them. Background is background for every block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.ndimage import distance_transform_edt

from pmni_nerfstudio.data.observations import Observations
from pmni_nerfstudio.geometry.cameras import pixel_directions, project
from pmni_nerfstudio.large_scenes.partition import Block, Partition
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_LEAST_SHARE = 0.02
"""Least number of pixels in which a view shows a block, relative to the view that shows most of it; others are left out."""
_BORDER = 0.04
"""Width of the border around a block that is kept, as a share of their extent: background beside the
silhouette."""
_LEAST_BORDER_PX = 8


@dataclass(frozen=True, eq=False)
class Windows:
    """Views that show a block, and the part of their frames that does; all parts have one size."""

    views: Int[np.ndarray, " m"]
    """Indices of the views."""
    corner: Int[np.ndarray, "m 2"]
    """First column and row of the part."""
    size: tuple[int, int]
    """Width and height of the parts."""


@dataclass(frozen=True, eq=False)
class BlockPixels:
    """Blocks that the pixels of each view show, at reduced resolution."""

    flags: UInt8[np.ndarray, "n h w bytes"]
    """Bits of the blocks, as of `numpy.packbits`."""
    step: int
    """Factor of the reduction: the pixels are every step-th one of the frame, beginning with the first."""
    shape: tuple[int, int]
    """Height and width of the frames."""

    def shown(self, view: int, block: int, rows: slice, columns: slice) -> Bool[np.ndarray, "h w"]:
        """Whether the pixels of a part of a frame show a block, given that they are on the mask."""
        y, x = (
            np.rint(np.arange(part.start, part.stop) / self.step).astype(int).clip(max=size - 1)
            for part, size in zip((rows, columns), self.flags.shape[1:3])
        )
        bits = self.flags[view, :, :, block // 8] & (128 >> block % 8)
        return bits[np.ix_(y, x)] > 0

    def views_of(self, block: int, masks: Bool[np.ndarray, "n h w"]) -> Int[np.ndarray, " m"]:
        """Views that show enough of a block to be of use.

        Args:
            block: index of the block.
            masks: masks of the views, at reduced resolution.
        """
        counts = ((self.flags[:, :, :, block // 8] & (128 >> block % 8) > 0) & masks).sum(axis=(1, 2))
        return np.flatnonzero(counts > _LEAST_SHARE * max(counts.max(), 1))


def windows_of(
    views: Int[np.ndarray, " m"], points: Float[np.ndarray, "p 3"], poses: Poses, frames: Observations
) -> Windows:
    """Parts of the frames that hold a block, hidden parts included: silhouettes are read nowhere else.

    Args:
        views: indices of the views.
        points: points of the block's surface, unit-sphere world.
        poses: poses of all views.
        frames: the views at full resolution.
    """
    frame = np.array([frames.width, frames.height])
    lows, highs = np.empty((len(views), 2)), np.empty((len(views), 2))
    for i, view in enumerate(views):
        camera = poses.to_camera(int(view), points)
        if (camera[:, 2] <= 0).any():  # beside or behind the camera, it may be beyond any side of the frame
            lows[i], highs[i] = 0, frame
            continue
        image = project(camera, frames.K[view])
        lows[i], highs[i] = image.min(axis=0).clip(0, frame), image.max(axis=0).clip(0, frame)
    extent = np.ceil((highs - lows).max(axis=0, initial=0)).astype(int)
    border = max(_LEAST_BORDER_PX, round(_BORDER * int(extent.max())))
    size = np.minimum(extent + 2 * border, frame)
    corner = np.rint(0.5 * (lows + highs - size)).astype(int).clip(0, frame - size)
    return Windows(views, corner, (int(size[0]), int(size[1])))


def pixels_of_blocks(
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"],
    surface: Surface,
    parts: Partition,
    frames: Observations,
    included: Bool[np.ndarray, " n"],
) -> BlockPixels:
    """Find the blocks that the pixels of all views show.

    Args:
        views: the views at reduced resolution.
        c2w: their poses, unit-sphere world.
        surface: surface of the object.
        parts: its blocks.
        frames: the views at full resolution.
        included: views with poses that fit; the others show nothing.
    """
    poses = Poses.from_c2w(c2w)
    step = max(1, round(frames.width / views.width))
    flags = np.zeros((*views.masks.shape, -(-len(parts.blocks) // 8)), dtype=np.uint8)
    for view in np.flatnonzero(included).tolist():
        depth = surface.depths(views.subset([view]), poses.subset([view]))[0]
        known = np.isfinite(depth)
        if not known.any():
            continue
        # Rays beside the registered surface, and those of pixels beside the mask, have the place of the nearest known one.
        nearest: np.ndarray = distance_transform_edt(~known, return_distances=False, return_indices=True)  # pyright: ignore[reportAssignmentType]
        flags[view] = _flags_at(views, view, poses, depth, known, parts)[nearest[0], nearest[1]]
    return BlockPixels(flags, step, (frames.height, frames.width))


def _flags_at(
    views: Views, view: int, poses: Poses, depth: np.ndarray, known: np.ndarray, parts: Partition
) -> UInt8[np.ndarray, "h w bytes"]:
    """Blocks at the surface points of the pixels of one view whose depth is known."""
    y, x = np.nonzero(known)
    camera = pixel_directions(views.K[view], np.stack([x, y], axis=1)) * depth[y, x, None]
    points = (camera - poses.t[view]) @ poses.R[view] @ parts.frame
    out = np.zeros((*known.shape, -(-len(parts.blocks) // 8)), dtype=np.uint8)
    out[y, x] = np.packbits(_membership(parts.blocks, points), axis=1)
    return out


def _membership(blocks: Sequence[Block], points: Float[np.ndarray, "p 3"]) -> Bool[np.ndarray, "p b"]:
    """Whether points, given along the axes of the box, lie in the blocks."""
    return np.stack([block.contains(points) for block in blocks], axis=1)

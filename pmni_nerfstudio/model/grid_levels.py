# SPDX-License-Identifier: Apache-2.0
"""Resolution of the field's grids and length of the schedule, chosen from the resolution of the normal maps."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.chunks import parse_memory
from pmni_nerfstudio.fields.blended_blocks import MAX_BLOCKS
from pmni_nerfstudio.fields.levels import training_bytes
from pmni_nerfstudio.fields.sdf_field import PmniFieldConfig

DETAIL_VERTICES = 193
"""Vertices per axis of the block for close-ups: as many as the grid that is integrated there has."""

MAX_FINER_GRID = 2
"""Largest factor by which blocks refine the occupancy grid of the whole scene."""
MIN_CLOSE_UPS = 8
"""Fewest close-ups that get a finer block. With 12 from all sides the surface was better everywhere; with 3 from one side the
block was noisy where these did not see, and normals were off by 2.9 instead of 0.6 deg."""


def with_matching_levels(
    config: PmniFieldConfig,
    K: Float[np.ndarray, "n 3 3"],
    c2w: Float[np.ndarray, "n 4 4"],
    close_ups: Bool[np.ndarray, " n"],
    detailed: bool,
) -> PmniFieldConfig:
    """The field's configuration with grid levels that match the normal maps, unless it specifies levels itself.

    From a visual hull, the finest voxel is slightly larger than the footprint of a pixel at the object's distance.
    Smaller voxels are not constrained by any observation and become noisy: on maps of 48x40 pixels, 96 cells left an
    error of 3.3 deg on a sphere and 48 cells leave 0.8 deg. A detailed initial surface constrains smaller voxels, and
    voxels of two thirds of a pixel represent more detail (a bunny at 153x128: 1.3 deg of error instead of 2.4).
    There are three or four levels, each with twice the cells of the previous one. Close-ups do not count: where
    they see, the field has a finer block if they are many.

    Args:
        config: Configuration of the field.
        K: Intrinsics in pixels.
        c2w: Camera-to-world poses in the unit-sphere world; only the distances from the origin are used.
        close_ups: Views that are close-ups (see close_ups.py).
        detailed: Whether training starts from a detailed surface instead of a visual hull.
    """
    distances, focals = np.linalg.norm(c2w[:, :3, 3], axis=1), K[:, 0, 0]
    if config.detail_vertices is None:
        config = dataclasses.replace(config, detail_vertices=DETAIL_VERTICES if close_ups.sum() >= MIN_CLOSE_UPS else 0)
    if config.grid_vertices:
        return config
    footprint = float(np.median(distances[~close_ups]) / np.median(focals[~close_ups]))
    max_voxel = (0.65 if detailed else 1.3) * footprint
    # The first resolution that is fine enough, otherwise the largest. Training from a detailed surface is short: on
    # maps of 306x256 pixels, 256 cells left a larger error than 192 (1.7 deg and 1.26 deg).
    cells = next((cells for cells in (48, 96, 192) if 2.0 / cells <= max_voxel), 192 if detailed else 256)
    levels = [cells // 4, cells // 2, cells] if cells < 192 else [cells // 8, cells // 4, cells // 2, cells]
    return dataclasses.replace(config, grid_vertices=tuple(level + 1 for level in levels))


def room_for_blocks(blocks: int, max_memory: str | None, config: PmniFieldConfig) -> int:
    """Largest number of blocks that the field may get: 1 if the surface is trained as a whole.

    Where one grid would take too much memory, how many blocks are needed is known with the initial surface.

    Args:
        blocks: Number of blocks that was asked for.
        max_memory: Memory that the grids of one training may take; None: unlimited.
        config: Configuration of the field, with its levels.
    """
    limit = parse_memory(max_memory)
    if blocks > 1 or limit is None or config.encoding != "grid":
        return blocks
    return MAX_BLOCKS if training_bytes(config.grid_vertices) > limit else 1


def matching_schedule_steps(pixels: int) -> int:
    """Number of schedule steps from a detailed initial surface; training ends soon after, once it has converged.

    The initial surface already follows the normals of single pixels, so that half of the steps remain that a surface of
    means over views needs: on a bunny of 306x256 pixels, schedules of 150 and 300 steps ended at a Chamfer distance of
    0.0180% and 0.0156%, and 600 steps from means over views at 0.0152%.

    Args:
        pixels: Number of pixels of one view.
    """
    return max(150, round(150 * (pixels / (153 * 128)) ** 0.5))

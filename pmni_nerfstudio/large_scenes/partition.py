# SPDX-License-Identifier: Apache-2.0
"""Partition of a surface into overlapping blocks, along the axes of its oriented bounding box."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.fields.blended_blocks import cells_of
from pmni_nerfstudio.geometry.camera_rings import OBJECT_RADIUS

_OVERLAP = 0.08
"""Reach of a block beyond a cut, as a share of the length of its cell along that axis."""
_RAMP = 0.5
"""Half the width of the zone of blending about a cut, as a share of that reach: where a block has a weight, its surface
is observed."""
_MARGIN_VOXELS = 3.0
"""Distance from the given surface within which the final one is sought, in voxels of the given one."""


@dataclass(frozen=True, eq=False)
class Block:
    """Part of the surface that one process reconstructs."""

    low: Float[np.ndarray, " 3"]
    """Lowest coordinates of the observed part along the axes of the box, overlap included; -inf at the outside."""
    high: Float[np.ndarray, " 3"]
    """Highest coordinates, likewise."""
    center: Float[np.ndarray, " 3"]
    """Center of the sphere around the block's surface, coordinates along the axes of the box."""
    radius: float
    """Radius of the sphere, in units of the unit-sphere world; zero for a block without surface."""

    def contains(self, points: Float[np.ndarray, "p 3"]) -> Bool[np.ndarray, " p"]:
        """Whether points, given along the axes of the box, lie in the observed part."""
        return ((points > self.low) & (points < self.high)).all(axis=1)


@dataclass(frozen=True, eq=False)
class Partition:
    """Blocks of a surface."""

    frame: Float[np.ndarray, "3 3"]
    """Axes of the box in the columns: a rotation from coordinates along them to the unit-sphere world."""
    counts: tuple[int, int, int]
    """Number of blocks along each axis."""
    low: Float[np.ndarray, " 3"]
    """Lowest corner of the box, coordinates along its axes."""
    high: Float[np.ndarray, " 3"]
    """Highest corner."""
    ramp: Float[np.ndarray, " 3"]
    """Half the width of the zone of blending about a cut, for each axis."""
    blocks: tuple[Block, ...]
    """The blocks, x slowest."""

    def cells(self) -> tuple[Float[np.ndarray, "b 3"], Float[np.ndarray, "b 3"]]:
        """Lowest and highest coordinates of the blocks' cells, without overlap, infinite at the outside."""
        low, high = cells_of(self.low.tolist(), self.high.tolist(), self.counts)
        return low.numpy().astype(np.float64), high.numpy().astype(np.float64)

    def unit_from_block(self, block: Block) -> Float[np.ndarray, "4 4"]:
        """Similarity from the unit sphere of a block, with the axes of the box, to the unit-sphere world."""
        similarity = np.eye(4)
        similarity[:3, :3] = block.radius * self.frame
        similarity[:3, 3] = self.frame @ block.center
        return similarity


def partition(vertices: Float[np.ndarray, "v 3"], count: int, voxel: float) -> Partition:
    """Cut a surface into blocks of equal size.

    Args:
        vertices: vertices of the surface, close enough to each other to tell where it is.
        count: number of blocks.
        voxel: edge of the cells of the grid that the surface was found on.
    """
    frame = principal_axes(vertices)
    local = vertices @ frame
    low, high = local.min(axis=0), local.max(axis=0)
    counts = best_counts(high - low, count)
    reach = _OVERLAP * (high - low) / np.array(counts)
    lows, highs = (bounds.numpy().astype(np.float64) for bounds in cells_of(low.tolist(), high.tolist(), counts))
    blocks = []
    for cell_low, cell_high in zip(lows - reach, highs + reach):
        inside = local[((local > cell_low) & (local < cell_high)).all(axis=1)]
        if not len(inside):
            blocks.append(Block(cell_low, cell_high, np.zeros(3), 0.0))
            continue
        center = 0.5 * (inside.min(axis=0) + inside.max(axis=0))
        radius = float(np.linalg.norm(inside - center, axis=1).max()) + _MARGIN_VOXELS * voxel
        blocks.append(Block(cell_low, cell_high, center, radius / OBJECT_RADIUS))
    return Partition(frame, counts, low, high, _RAMP * reach, tuple(blocks))


def principal_axes(points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation whose columns are the principal axes of points, that of the largest extent first."""
    _, axes = np.linalg.eigh(np.cov(points.T))
    axes = axes[:, ::-1]
    # Signs that do not depend on the solver: the largest component of an axis is positive, and the last is a right hand's.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(3)])
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    return axes


def best_counts(extents: Float[np.ndarray, " 3"], count: int) -> tuple[int, int, int]:
    """Numbers of parts along the three axes of a box, of which the product is `count`, with the smallest diagonal."""
    factors = [n for n in range(1, count + 1) if count % n == 0]
    options = [(a, b, count // (a * b)) for a, b in product(factors, factors) if count % (a * b) == 0]
    return min(options, key=lambda option: float(np.linalg.norm(extents / np.array(option))))

# SPDX-License-Identifier: Apache-2.0
"""Sparse evaluation of a signed distance function on a fine lattice: octree search for the cells near its surface.

A block of half-diagonal r can contain a zero only if |f(center)| <= L r, where L bounds the slope of f. The slope of a
learned SDF is close to one near its surface at best, so L is not fixed: at each level it is twice the 99th percentile
of the slopes between the block centers evaluated there. Eight sibling blocks are also kept if their centers differ in
sign. The search ends with blocks of 2 x 2 x 2 cells, whose lattice points are evaluated. Wherever the sign changes on a
block's face, the neighboring block must contain surface too and is added, until none is missing. A connected piece of
surface that is found anywhere is therefore found completely: a wrong L can lose a piece if all of its blocks fail the
test, but never leaves a hole.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pmni_nerfstudio.chunks import Chunks
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.marching_cubes_table import CORNERS

BLOCK = 2
"""Cells per axis of a leaf block; smaller leaves need more block centers than they save lattice points."""

COARSE_BLOCKS = 40
"""Least number of blocks per axis at the coarsest level: each is then at most 2.5% of the cube's edge."""

SLOPE_MARGIN = 2.0
SLOPE_QUANTILE = 0.99

_LOOKUP_BLOCKS = 1 << 17

BLOCK_POINTS = np.stack(np.meshgrid(*[np.arange(BLOCK + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
"""Offsets (27, 3) of a leaf block's lattice points, x slowest."""


@dataclass
class SdfLattice:
    """An SDF on a regular lattice over the cube [-bound, bound]^3, intersected with the ball of radius `bound`.

    Training follows no rays outside the ball, so the SDF is undefined there; a surface that leaves the ball is closed
    by it. A lattice point is identified by its key (x * size + y) * size + z, which sorts like its coordinates.
    """

    sdf: Callable[[Tensor], Tensor]
    """Signed distances (P,) of points (P, 3) float32, negative inside."""
    resolution: int
    """Cells per axis of the cube."""
    device: torch.device
    chunks: Chunks
    """Splits points into calls of the SDF."""
    bound: float = 1.0
    on_points: Callable[[int], None] = lambda _: None
    """Called after each call of the SDF with its number of points."""

    size: int = field(init=False)
    """Lattice points per axis; the last blocks of the coarsest level may extend beyond the cube."""
    levels: int = field(init=False)
    """Subdivisions from the coarsest blocks to the leaves."""

    def __post_init__(self) -> None:
        blocks = -(-self.resolution // BLOCK)
        self.levels = 0
        while -(-blocks // 2) >= COARSE_BLOCKS:
            blocks = -(-blocks // 2)
            self.levels += 1
        self.coarse_blocks = blocks
        self.size = blocks * (BLOCK << self.levels) + 1
        self.spacing = 2 * self.bound / self.resolution
        self.strides = np.array([self.size**2, self.size, 1], dtype=np.int64)

    def coordinates(self, keys: np.ndarray) -> np.ndarray:
        """Integer coordinates (P, 3) of keys (P,)."""
        rest, z = np.divmod(keys, self.size)
        return np.stack([*np.divmod(rest, self.size), z], axis=-1)

    def values(self, keys: np.ndarray, along: np.ndarray | None = None, axis: np.ndarray | None = None) -> np.ndarray:
        """SDF values (P,) float32 at lattice points, optionally shifted; see `positions`.

        Raises:
            PmniError: a value is not finite.
        """
        out = np.empty(len(keys), dtype=np.float32)

        def some(start: int, size: int) -> np.ndarray:
            part = slice(start, start + size)
            if along is None or axis is None:
                return self.evaluate(self.positions(keys[part]))
            return self.evaluate(self.positions(keys[part], along[part], axis[part]))

        start = 0
        while start < len(keys):
            found = self.chunks.run(partial(some, start))
            out[start : start + len(found)] = found
            start += len(found)
            self.on_points(len(found))
        if not np.isfinite(out).all():
            where = self.positions(keys[~np.isfinite(out)][:1])[0].round(3).tolist()
            raise PmniError(f"the SDF is not finite at {where}, so no mesh can be extracted: training has diverged")
        return out

    def evaluate(self, points: np.ndarray) -> np.ndarray:
        """SDF values (P,) float32 at points (P, 3) from one call of the SDF; outside the ball the distance to it."""
        x = torch.from_numpy(points.astype(np.float32)).to(self.device)
        with torch.inference_mode():
            ball = x.norm(dim=-1) - self.bound * (1 - 1e-6)  # positive on the cube's faces despite rounding
            f = torch.maximum(self.sdf(x.clamp(-self.bound, self.bound)).reshape(-1), ball)
        return f.float().cpu().numpy()

    def positions(
        self, keys: np.ndarray, along: np.ndarray | None = None, axis: np.ndarray | None = None
    ) -> np.ndarray:
        """World coordinates (P, 3) float64 of lattice points.

        Args:
            keys: (P,).
            along: (P,) shift of each point in cells, fractions included.
            axis: (P,) axis of each shift.
        """
        cells = self.coordinates(keys).astype(np.float64)
        if along is not None and axis is not None:
            cells[np.arange(len(cells)), axis] += along
        return cells * self.spacing - self.bound

    def leaf_blocks(self) -> np.ndarray:
        """Sorted keys (B,) of the lowest corners of the leaf blocks that may contain surface."""
        half = np.arange(-(-self.coarse_blocks // 2))
        blocks = np.stack(np.meshgrid(half, half, half, indexing="ij"), axis=-1).reshape(-1, 3)
        for level in range(self.levels, -1, -1):
            size = BLOCK << level
            blocks = (2 * blocks[:, None] + CORNERS).reshape(-1, 3)
            # With an odd number of coarse blocks some siblings lie beyond the lattice: evaluate the nearest inside.
            centers = np.minimum(blocks, (self.size - 1) // size - 1) * size + size // 2
            f = self.values(centers @ self.strides).reshape(-1, 2, 2, 2)
            slopes = np.stack([np.diff(f, axis=a).mean(axis=(1, 2, 3)) for a in (1, 2, 3)]) / (size * self.spacing)
            slope = SLOPE_MARGIN * np.quantile(np.linalg.norm(slopes, axis=0), SLOPE_QUANTILE)
            f = f.reshape(-1, 8)
            inside = f < 0
            split = inside.any(axis=1) & ~inside.all(axis=1)
            near = np.abs(f) <= slope * np.sqrt(3) / 2 * size * self.spacing
            keep = (near | split[:, None]).reshape(-1) & (blocks * size < self.size - 1).all(axis=1)
            blocks = blocks[keep]
        return np.sort(blocks * BLOCK @ self.strides)


@dataclass(frozen=True)
class SurfaceBlocks:
    """Leaf blocks that the surface intersects, with the SDF at their lattice points."""

    keys: np.ndarray
    """Sorted int64 keys (P,) of lattice points."""
    values: np.ndarray
    """SDF values (P,) float32."""
    points: np.ndarray
    """Indices into `keys`, (B, 27) int32, of each block's lattice points, in the order of BLOCK_POINTS."""


def _is_in(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each key is among the known ones, which are sorted."""
    if not len(known):
        return np.zeros(len(keys), dtype=bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def _unique(keys: np.ndarray) -> np.ndarray:
    """Sorted distinct keys.

    Faster than `np.unique`, because a stable sort merges the sorted runs that these arrays consist of.
    """
    keys = np.sort(keys.reshape(-1), kind="stable")
    return keys[np.r_[True, keys[1:] != keys[:-1]]] if len(keys) else keys


def _merge(known: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted union of two disjoint sets of keys, and the order in which they were concatenated."""
    keys = np.concatenate([known, new])
    order = np.argsort(keys, kind="stable")
    return keys[order], order


def _neighbors_across(inside: np.ndarray, blocks: np.ndarray, strides: np.ndarray) -> np.ndarray:
    """Keys of the blocks beyond faces on which the sign changes.

    Args:
        inside: (B, 27), whether each lattice point of a block is inside.
        blocks: (B,) keys of the blocks.
        strides: (3,) of the keys.
    """
    cube = inside.reshape(-1, BLOCK + 1, BLOCK + 1, BLOCK + 1)
    found = []
    for axis in range(3):
        for side, step in ((0, -BLOCK), (BLOCK, BLOCK)):
            face = cube.take(side, axis=axis + 1).reshape(len(cube), (BLOCK + 1) ** 2)
            found.append(blocks[face.any(axis=1) & ~face.all(axis=1)] + step * strides[axis])
    return np.concatenate(found)


def sample_surface(lattice: SdfLattice) -> SurfaceBlocks:
    """Find the leaf blocks that the surface intersects and evaluate the SDF at their lattice points.

    Raises:
        PmniError: the SDF has no surface or is not finite.
    """
    offsets = BLOCK_POINTS @ lattice.strides
    keys, values = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    frontier = lattice.leaf_blocks()
    seen, surface = frontier, []
    while len(frontier):
        new = _unique(frontier + offsets[:, None])
        new = new[~_is_in(new, keys)]
        keys, order = _merge(keys, new)
        values = np.concatenate([values, lattice.values(new)])[order]
        beyond = []
        for start in range(0, len(frontier), _LOOKUP_BLOCKS):
            blocks = frontier[start : start + _LOOKUP_BLOCKS]
            inside = values[np.searchsorted(keys, blocks[:, None] + offsets)] < 0
            mixed = inside.any(axis=1) & ~inside.all(axis=1)
            surface.append(blocks[mixed])
            beyond.append(_neighbors_across(inside[mixed], blocks[mixed], lattice.strides))
        frontier = _unique(np.concatenate(beyond))
        frontier = frontier[~_is_in(frontier, seen)]
        seen = _merge(seen, frontier)[0]
    blocks = np.sort(np.concatenate(surface)) if surface else np.empty(0, dtype=np.int64)
    if not len(blocks):
        raise PmniError("the SDF is positive throughout the unit sphere, so no mesh can be extracted: train again")
    points = np.empty((len(blocks), len(offsets)), dtype=np.int32)
    for start in range(0, len(blocks), _LOOKUP_BLOCKS):
        part = slice(start, start + _LOOKUP_BLOCKS)
        points[part] = np.searchsorted(keys, blocks[part, None] + offsets)
    return SurfaceBlocks(keys, values, points)

# SPDX-License-Identifier: Apache-2.0
"""Where a surface lies on a fine lattice: an octree search of a signed distance that never visits the empty space.

A block of half-diagonal r can hold a zero only if |f(centre)| <= L r, where L bounds the slope of f. A learnt SDF has
unit slope near its surface at best, so L is no constant here: at each level it is twice the 99th percentile of the
slopes that the evaluated centres show. Beside that test, eight siblings are kept whenever their centres differ in sign.
What is left is blocks of 2 x 2 x 2 cells, whose lattice points are evaluated; where the sign changes on a block's face
the neighbour must hold surface too and is added, until none is missing. So a piece of surface that is found anywhere is
found whole: a wrong L can lose only a piece all of whose blocks fail the test, and never leaves a hole.
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
"""Cells along a leaf block: smaller leaves cost more centres than they save corners, larger ones the reverse."""

COARSE_BLOCKS = 40
"""Least number of blocks along an axis of the level at which the search starts: a band of 5% of the cube."""

SLOPE_MARGIN = 2.0
SLOPE_QUANTILE = 0.99

_LOOKUP_BLOCKS = 1 << 17

BLOCK_POINTS = np.stack(np.meshgrid(*[np.arange(BLOCK + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
"""(27, 3) offsets of a leaf block's lattice points, x slowest."""


@dataclass
class Lattice:
    """An SDF seen through a regular lattice of points over the cube [-bound, bound]^3, cut off by the cube's ball.

    No ray is followed outside the ball, so the SDF says nothing there. A surface that runs out of it comes out closed.
    Points are named by keys (x * size + y) * size + z, which sort like their coordinates.
    """

    sdf: Callable[[Tensor], Tensor]
    """(P, 3) float32 -> (P,), negative inside."""
    resolution: int
    """Cells along the cube's edge."""
    device: torch.device
    chunks: Chunks
    """Of points in one call of the SDF."""
    bound: float = 1.0
    on_points: Callable[[int], None] = lambda _: None
    """Called with the number of points after each call of the SDF."""

    size: int = field(init=False)
    """Lattice points along an axis; the coarsest level's last blocks may stand out of the cube."""
    levels: int = field(init=False)
    """Halvings between the coarsest blocks and the leaves."""

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
        """(P,) keys -> (P, 3) integer coordinates."""
        rest, z = np.divmod(keys, self.size)
        return np.stack([*np.divmod(rest, self.size), z], axis=-1)

    def values(self, keys: np.ndarray, along: np.ndarray | None = None, axis: np.ndarray | None = None) -> np.ndarray:
        """(P,) keys -> (P,) float32 SDF values there, or, with `along` (P,), at that many cells further on `axis` (P,).

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
            raise PmniError(f"the SDF is not finite at {where}: training has diverged, so there is no mesh to export")
        return out

    def evaluate(self, points: np.ndarray) -> np.ndarray:
        """(P, 3) points -> (P,) float32 SDF values there, in one call; outside the ball the distance to it."""
        x = torch.from_numpy(points.astype(np.float32)).to(self.device)
        with torch.inference_mode():
            ball = x.norm(dim=-1) - self.bound * (1 - 1e-6)  # outside at the cube's faces even after rounding
            f = torch.maximum(self.sdf(x.clamp(-self.bound, self.bound)).reshape(-1), ball)
        return f.float().cpu().numpy()

    def positions(
        self, keys: np.ndarray, along: np.ndarray | None = None, axis: np.ndarray | None = None
    ) -> np.ndarray:
        """(P,) keys (and a shift of `along` cells on `axis`) -> (P, 3) float64 points of the model's world."""
        cells = self.coordinates(keys).astype(np.float64)
        if along is not None and axis is not None:
            cells[np.arange(len(cells)), axis] += along
        return cells * self.spacing - self.bound

    def leaf_blocks(self) -> np.ndarray:
        """(B,) sorted keys of the lowest corners of the leaf blocks that may hold surface."""
        half = np.arange(-(-self.coarse_blocks // 2))
        blocks = np.stack(np.meshgrid(half, half, half, indexing="ij"), axis=-1).reshape(-1, 3)
        for level in range(self.levels, -1, -1):
            size = BLOCK << level
            blocks = (2 * blocks[:, None] + CORNERS).reshape(-1, 3)
            # An odd number of coarse blocks leaves siblings beyond the lattice: they take their nearest neighbour's value.
            centres = np.minimum(blocks, (self.size - 1) // size - 1) * size + size // 2
            f = self.values(centres @ self.strides).reshape(-1, 2, 2, 2)
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
    """The leaf blocks that the surface runs through, with the SDF at their lattice points."""

    keys: np.ndarray
    """(P,) sorted int64 keys of lattice points."""
    values: np.ndarray
    """(P,) float32."""
    points: np.ndarray
    """(B, 27) int32: places in `keys` of each block's lattice points, in the order of BLOCK_POINTS."""


def _is_in(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each key is among the sorted known ones."""
    if not len(known):
        return np.zeros(len(keys), dtype=bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def _unique(keys: np.ndarray) -> np.ndarray:
    """Sorted distinct keys. A stable sort merges the sorted runs that these arrays are made of, much faster than np.unique."""
    keys = np.sort(keys.reshape(-1), kind="stable")
    return keys[np.r_[True, keys[1:] != keys[:-1]]] if len(keys) else keys


def _merge(known: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keys = np.concatenate([known, new])
    order = np.argsort(keys, kind="stable")
    return keys[order], order


def _neighbours_across(inside: np.ndarray, blocks: np.ndarray, strides: np.ndarray) -> np.ndarray:
    """(B, 27) signs and (B,) keys -> keys of the blocks beyond faces on which the sign changes."""
    cube = inside.reshape(-1, BLOCK + 1, BLOCK + 1, BLOCK + 1)
    found = []
    for axis in range(3):
        for side, step in ((0, -BLOCK), (BLOCK, BLOCK)):
            face = cube.take(side, axis=axis + 1).reshape(len(cube), -1)
            found.append(blocks[face.any(axis=1) & ~face.all(axis=1)] + step * strides[axis])
    return np.concatenate(found)


def sample_surface(lattice: Lattice) -> SurfaceBlocks:
    """Evaluate the SDF on every leaf block that its surface runs through.

    Raises:
        PmniError: there is no surface, or the SDF is not finite.
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
            beyond.append(_neighbours_across(inside[mixed], blocks[mixed], lattice.strides))
        frontier = _unique(np.concatenate(beyond))
        frontier = frontier[~_is_in(frontier, seen)]
        seen = _merge(seen, frontier)[0]
    blocks = np.sort(np.concatenate(surface)) if surface else np.empty(0, dtype=np.int64)
    if not len(blocks):
        raise PmniError("the SDF is positive throughout the unit sphere, so there is no mesh to export: train anew")
    points = np.empty((len(blocks), len(offsets)), dtype=np.int32)
    for start in range(0, len(blocks), _LOOKUP_BLOCKS):
        part = slice(start, start + _LOOKUP_BLOCKS)
        points[part] = np.searchsorted(keys, blocks[part, None] + offsets)
    return SurfaceBlocks(keys, values, points)

# SPDX-License-Identifier: Apache-2.0
"""Triangle mesh of a signed distance: marching cubes on the cells that the surface runs through, and on no others."""

from collections.abc import Callable

import numpy as np
import torch
import trimesh
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from pmni_nerfstudio.chunks import Chunks, chunks_within
from pmni_nerfstudio.geometry.marching_cubes_table import CORNERS, EDGE_AXES, EDGES, triangle_table
from pmni_nerfstudio.geometry.mesh import keep_large_components
from pmni_nerfstudio.geometry.sparse_lattice import BLOCK, Lattice, SurfaceBlocks, sample_surface

_CLEARANCE = 1e-3
"""Least distance, in cells, of a vertex from its edge's ends: where the SDF is exactly zero on a lattice point, six
vertices would meet there, and a file format without indices (STL) would weld them into a non-manifold point."""

_HOST_BYTES = 128
"""That the coordinates of a point take outside PyTorch."""


def _triangles(blocks: SurfaceBlocks) -> np.ndarray:
    """(F, 3) triangles whose vertices are lattice edges, named 3 * (place of the edge's lower point) + axis."""
    side = BLOCK + 1
    in_block = (CORNERS[:, None] + CORNERS) @ np.array([side * side, side, 1])  # (8 cells, 8 corners) -> of the 27
    inside = blocks.values[blocks.points] < 0
    pattern = np.zeros((len(inside), 8), dtype=np.uint8)
    for corner in range(8):
        pattern |= inside[:, in_block[:, corner]].astype(np.uint8) << corner
    counts, table = triangle_table()
    block, cell = np.nonzero(counts[pattern])
    pattern = pattern[block, cell]
    edges = table[pattern]
    edges = edges[edges[..., 0] >= 0]
    owner = np.repeat(np.arange(len(pattern)), counts[pattern])[:, None]
    lower = blocks.points[block[owner], in_block[cell[owner], EDGES[edges, 0]]]
    return 3 * lower.astype(np.int64) + EDGE_AXES[edges]


def _vertices(lattice: Lattice, blocks: SurfaceBlocks, lower: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """(V,) places of lattice points and axes of the edges that start there -> (V, 3) zeros of the SDF on these edges.

    Linear interpolation and one step of regula falsi, which cannot leave the edge. On a smooth surface the step changes
    little; on a plate as thin as a cell, where the SDF turns inside the edge, it mends a quarter of the volume.
    """
    start = blocks.keys[lower]
    upper = np.searchsorted(blocks.keys, start + lattice.strides[axis])
    f = np.stack([blocks.values[lower], blocks.values[upper]], axis=1).astype(np.float64)
    at = np.tile([0.0, 1.0], (len(f), 1))
    t = _zero(at, f)
    value = lattice.values(start, t, axis)
    end = ((value < 0) != (f[:, 0] < 0)).astype(np.intp)  # the end on the same side of the surface moves up
    rows = np.arange(len(f))
    at[rows, end], f[rows, end] = t, value
    return lattice.positions(start, _zero(at, f), axis)


def _zero(at: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Zero of the line through two points of each row of (V, 2) places and values of opposite sign."""
    t = (at[:, 0] * f[:, 1] - at[:, 1] * f[:, 0]) / (f[:, 1] - f[:, 0])
    return t.clip(_CLEARANCE, 1 - _CLEARANCE)


def extract_mesh(
    sdf: Callable[[Tensor], Tensor],
    resolution: int = 512,
    *,
    device: torch.device | str = "cpu",
    chunk: int = 1 << 17,
    max_memory: int | None = None,
    keep_components: float = 0.02,
    bound: float = 1.0,
    progress: bool = True,
) -> trimesh.Trimesh:
    """Marching cubes of an SDF over the cube [-bound, bound]^3, at a cost that grows with the surface, not the volume.

    Args:
        sdf: (P, 3) float32 on `device` -> (P,) signed distance, negative inside.
        resolution: cells along the cube's edge.
        device: where the points are made for the SDF.
        chunk: points in one call of the SDF; fewer where a GPU's memory runs out.
        max_memory: bytes that one call may take, beside what is loaded; None: no bound.
        keep_components: pieces with less than this share of the largest one's area are dropped; 0 keeps all.
        bound: half the cube's edge, in units of the SDF's world.
        progress: show a progress bar.

    Returns:
        A closed two-manifold in the SDF's world, triangles counter-clockwise seen from outside, vertices shared.

    Raises:
        PmniError: there is no surface, the SDF is not finite, or the memory doesn't suffice for any call.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[points]:,} points"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not progress, transient=True) as bar:
        task = bar.add_task("Searching the surface", total=None, points=0)
        seen = 0

        def on_points(count: int) -> None:
            nonlocal seen
            seen += count
            bar.update(task, points=seen)

        lattice = Lattice(sdf, resolution, torch.device(device), Chunks(chunk, "points"), bound, on_points)
        # The cube's diagonal: of all points the SDF is asked the same.
        lattice.chunks = chunks_within(
            max_memory,
            chunk,
            "points",
            lambda count: lattice.evaluate(np.linspace([-bound] * 3, [bound] * 3, count)),
            _HOST_BYTES,
        )
        blocks = sample_surface(lattice)
        bar.update(task, description="Drawing triangles")
        corners = _triangles(blocks)
        used = np.zeros(3 * len(blocks.keys), dtype=bool)
        used[corners] = True
        edges = np.flatnonzero(used)
        places = np.cumsum(used, dtype=np.int32) - 1
        vertices = _vertices(lattice, blocks, edges // 3, edges % 3)
        mesh = trimesh.Trimesh(vertices, places[corners], process=False)
    return keep_large_components(mesh, keep_components)

# SPDX-License-Identifier: Apache-2.0
"""Triangle mesh of a signed distance function by marching cubes on a sparse lattice.

skimage's marching cubes needs a dense volume, 540 MB and 135 million evaluations of the network at 512^3; this one
evaluates only cells near the surface, and its meshes are always closed two-manifolds. For volumes that exist anyway
(`registration.surface`) skimage's serves.
"""

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
from pmni_nerfstudio.geometry.sparse_lattice import BLOCK, SdfLattice, SurfaceBlocks, sample_surface

_CLEARANCE = 1e-3
"""Least distance of a vertex from the ends of its edge, in cells. If the SDF is exactly zero at a lattice point, six
vertices would coincide there, and a file format without indices (STL) would merge them: no longer a manifold."""

_HOST_BYTES = 128
"""Memory for the coordinates of one point outside PyTorch."""


def _triangles(blocks: SurfaceBlocks) -> np.ndarray:
    """Triangles (F, 3) whose vertices are lattice edges, numbered 3 * (index of the edge's lower point) + axis."""
    side = BLOCK + 1
    in_block = (CORNERS[:, None] + CORNERS) @ np.array([side * side, side, 1])  # (8 cells, 8 corners) -> index among 27
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


def _vertices(lattice: SdfLattice, blocks: SurfaceBlocks, lower: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Zero crossings (V, 3) of the SDF on lattice edges, given each edge's lower point (V,) and axis (V,).

    Linear interpolation, then one step of regula falsi, which cannot leave the edge. On smooth surfaces the step
    changes little; on a plate one cell thick, where the SDF has its minimum inside the edge, it restores a quarter of
    the volume.
    """
    start = blocks.keys[lower]
    upper = np.searchsorted(blocks.keys, start + lattice.strides[axis])
    f = np.stack([blocks.values[lower], blocks.values[upper]], axis=1).astype(np.float64)
    at = np.tile([0.0, 1.0], (len(f), 1))
    t = _zero(at, f)
    value = lattice.values(start, t, axis)
    end = ((value < 0) != (f[:, 0] < 0)).astype(np.intp)  # the end with the same sign is replaced
    rows = np.arange(len(f))
    at[rows, end], f[rows, end] = t, value
    return lattice.positions(start, _zero(at, f), axis)


def _zero(at: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Zeros (V,) of the lines through two points each: positions (V, 2), values (V, 2) of opposite sign."""
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
    """Extract the zero level set of an SDF in the ball of radius `bound`, at a cost proportional to its area.

    Args:
        sdf: (P, 3) float32 on `device` -> (P,) signed distance, negative inside.
        resolution: cells along an edge of the cube [-bound, bound]^3.
        device: device of the points that `sdf` is called with.
        chunk: points per call of `sdf`; reduced where a GPU's memory runs out.
        max_memory: bytes that one call may take, beyond what is already allocated; None for no limit.
        keep_components: connected components with less than this share of the largest component's area are removed;
            0 keeps all.
        bound: half the cube's edge, in world units of the SDF.
        progress: show a progress bar.

    Returns:
        Closed two-manifold in the SDF's world, triangles counter-clockwise seen from outside, vertices shared.

    Raises:
        PmniError: the SDF has no surface or is not finite, or memory does not suffice for the smallest chunk.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[points]:,} points"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not progress, transient=True) as bar:
        task = bar.add_task("Searching for the surface", total=None, points=0)
        seen = 0

        def on_points(count: int) -> None:
            nonlocal seen
            seen += count
            bar.update(task, points=seen)

        lattice = SdfLattice(sdf, resolution, torch.device(device), Chunks(chunk, "points"), bound, on_points)
        # Memory is measured at points on the cube's diagonal; any points take the same.
        lattice.chunks = chunks_within(
            max_memory,
            chunk,
            "points",
            lambda count: lattice.evaluate(np.linspace([-bound] * 3, [bound] * 3, count)),
            _HOST_BYTES,
        )
        blocks = sample_surface(lattice)
        bar.update(task, description="Extracting triangles")
        corners = _triangles(blocks)
        used = np.zeros(3 * len(blocks.keys), dtype=bool)
        used[corners] = True
        edges = np.flatnonzero(used)
        places = np.cumsum(used, dtype=np.int32) - 1
        vertices = _vertices(lattice, blocks, edges // 3, edges % 3)
        mesh = trimesh.Trimesh(vertices, places[corners], process=False)
    return keep_large_components(mesh, keep_components)

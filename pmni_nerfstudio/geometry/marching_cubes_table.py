# SPDX-License-Identifier: Apache-2.0
"""Triangle table of marching cubes for the 256 patterns of inside corners, derived by rule.

After Lorensen and Cline, "Marching Cubes" (SIGGRAPH 1987), with a rule in place of their table: on an ambiguous cube
face, whose corners alternate, inside corners are separated. The rule depends on the face alone, so that both cells that
share a face draw the same line segments on it, and the surface is closed. Within a cell the segments form loops, which
are triangulated without diagonals between two edges of one cube face: such a diagonal could coincide with one of the
neighboring cell, and four triangles would share an edge. Hence every mesh is a closed two-manifold, for any field.

Corner c of the cell lies at (c >> 2 & 1, c >> 1 & 1, c & 1).
"""

from functools import lru_cache
from itertools import combinations

import numpy as np

CORNERS = np.array([[c >> 2 & 1, c >> 1 & 1, c & 1] for c in range(8)])
"""Offsets (8, 3) of the corners of a cell."""

EDGES = np.array([(a, a | bit) for bit in (4, 2, 1) for a in range(8) if not a & bit])
"""Corners (12, 2) that each edge joins, the lower first: edges 0 to 3 along x, 4 to 7 along y, 8 to 11 along z."""

EDGE_AXES = np.repeat(np.arange(3), 4)
"""Axis (12,) of each edge."""

_EDGE_CENTERS = CORNERS[EDGES].mean(axis=1)


def _on_one_face(edges: tuple[int, ...]) -> bool:
    """Whether edges lie on a common face of the cube."""
    corners = CORNERS[EDGES[list(edges)].ravel()]
    return bool((corners == corners[0]).all(axis=0).any())


def _face_segments(inside: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of intersected edges that a line segment joins across one of the six faces."""
    crossed = np.flatnonzero(inside[EDGES[:, 0]] != inside[EDGES[:, 1]])
    segments = []
    for axis in range(3):
        for side in (0, 1):
            on_face = [int(e) for e in crossed if (CORNERS[EDGES[e], axis] == side).all()]
            if len(on_face) == 2:
                segments.append((on_face[0], on_face[1]))
            elif len(on_face) == 4:  # ambiguous face: a segment around each inside corner
                for corner in np.flatnonzero(inside & (CORNERS[:, axis] == side)):
                    first, second = [e for e in on_face if corner in EDGES[e]]
                    segments.append((first, second))
    return segments


def _loops(segments: list[tuple[int, int]]) -> list[list[int]]:
    """Closed loops that the segments form."""
    neighbors: dict[int, list[int]] = {}
    for a, b in segments:
        neighbors.setdefault(a, []).append(b)
        neighbors.setdefault(b, []).append(a)
    loops = []
    while neighbors:
        loop = [next(iter(neighbors))]
        while True:
            onward = [e for e in neighbors[loop[-1]] if e not in loop]
            if not onward:
                break
            loop.append(onward[0])
        for edge in loop:
            del neighbors[edge]
        loops.append(loop)
    return loops


def _triangulations(loop: list[int]) -> list[list[tuple[int, int, int]]]:
    """All triangulations of a polygon by its diagonals."""
    if len(loop) < 3:
        return [[]]
    return [
        [(loop[0], loop[k], loop[-1]), *left, *right]
        for k in range(1, len(loop) - 1)
        for left in _triangulations(loop[: k + 1])
        for right in _triangulations(loop[k:])
    ]


def _triangulate(loop: list[int], inside: np.ndarray) -> list[tuple[int, int, int]]:
    """Triangulate a loop without diagonals on cube faces, wound counter-clockwise seen from outside."""
    sides = {frozenset(pair) for pair in zip(loop, loop[1:] + loop[:1])}
    for triangles in _triangulations(loop):
        edges = {frozenset(pair) for triangle in triangles for pair in combinations(triangle, 2)}
        if not any(_on_one_face(tuple(diagonal)) for diagonal in edges - sides):
            break
    else:
        raise AssertionError(f"no manifold triangulation of the loop {loop}")
    # The loop's area vector must point from the inside ends of the intersected edges to their outside ends.
    points = _EDGE_CENTERS[loop]
    area = np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0)
    ends = EDGES[loop]
    outward = np.where(inside[ends[:, :1]], 1, -1) * (CORNERS[ends[:, 1]] - CORNERS[ends[:, 0]])
    flipped = (area @ outward.sum(axis=0)) < 0
    return [(a, c, b) if flipped else (a, b, c) for a, b, c in triangles]


@lru_cache(maxsize=1)
def triangle_table() -> tuple[np.ndarray, np.ndarray]:
    """Triangles of all patterns; bit c of a pattern is set if corner c is inside.

    Returns:
        counts: (256,) number of triangles.
        table: (256, T, 3) the edge that each triangle's corner lies on, counter-clockwise seen from outside, padded
            with -1.
    """
    rows = []
    for pattern in range(256):
        inside = np.array([pattern >> c & 1 for c in range(8)], dtype=bool)
        rows.append([t for loop in _loops(_face_segments(inside)) for t in _triangulate(loop, inside)])
    counts = np.array([len(row) for row in rows])
    table = np.full((256, counts.max(), 3), -1)
    for pattern, row in enumerate(rows):
        table[pattern, : len(row)] = np.reshape(row, (-1, 3))
    return counts, table

# SPDX-License-Identifier: Apache-2.0
"""Triangles of one marching-cubes cell for each of the 256 patterns of inside corners, derived rather than listed.

Lorensen and Cline, "Marching Cubes" (SIGGRAPH 1987), with one rule in place of their table: on a cube's face whose
corners alternate, the inside corners are kept apart. The rule reads the face alone, so both cells that share the face
draw the same lines on it, and the surface closes. Inside a cell these lines form loops, each cut into triangles with no
diagonal between two edges of one cube face: such a diagonal could meet its twin from the neighbouring cell, and four
triangles would share an edge. Hence every mesh is a closed two-manifold, whatever the field.

Corner c of the cell lies at (c >> 2 & 1, c >> 1 & 1, c & 1).
"""

from functools import lru_cache
from itertools import combinations

import numpy as np

CORNERS = np.array([[c >> 2 & 1, c >> 1 & 1, c & 1] for c in range(8)])
"""(8, 3) offsets of the corners, x first."""

EDGES = np.array([(a, a | bit) for bit in (4, 2, 1) for a in range(8) if not a & bit])
"""(12, 2) corners that each edge joins, the lower first; edges 0 to 3 run along x, 4 to 7 along y, 8 to 11 along z."""

EDGE_AXES = np.repeat(np.arange(3), 4)
"""(12,) axis of each edge."""

_MIDDLES = CORNERS[EDGES].mean(axis=1)


def _on_one_face(edges: tuple[int, ...]) -> bool:
    corners = CORNERS[EDGES[list(edges)].ravel()]
    return bool((corners == corners[0]).all(axis=0).any())


def _face_lines(inside: np.ndarray) -> list[tuple[int, int]]:
    """The pairs of cut edges joined by a line across each of the six faces."""
    cut = np.flatnonzero(inside[EDGES[:, 0]] != inside[EDGES[:, 1]])
    lines = []
    for axis in range(3):
        for side in (0, 1):
            on_face = [int(e) for e in cut if (CORNERS[EDGES[e], axis] == side).all()]
            if len(on_face) == 2:
                lines.append((on_face[0], on_face[1]))
            elif len(on_face) == 4:  # alternating corners: a line round each inside corner
                for corner in np.flatnonzero(inside & (CORNERS[:, axis] == side)):
                    first, second = [e for e in on_face if corner in EDGES[e]]
                    lines.append((first, second))
    return lines


def _loops(lines: list[tuple[int, int]]) -> list[list[int]]:
    neighbours: dict[int, list[int]] = {}
    for a, b in lines:
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    loops = []
    while neighbours:
        loop = [next(iter(neighbours))]
        while True:
            onward = [e for e in neighbours[loop[-1]] if e not in loop]
            if not onward:
                break
            loop.append(onward[0])
        for edge in loop:
            del neighbours[edge]
        loops.append(loop)
    return loops


def _triangulations(loop: list[int]) -> list[list[tuple[int, int, int]]]:
    """All ways of cutting a polygon into triangles by its diagonals."""
    if len(loop) < 3:
        return [[]]
    return [
        [(loop[0], loop[k], loop[-1]), *left, *right]
        for k in range(1, len(loop) - 1)
        for left in _triangulations(loop[: k + 1])
        for right in _triangulations(loop[k:])
    ]


def _triangulate(loop: list[int], inside: np.ndarray) -> list[tuple[int, int, int]]:
    sides = {frozenset(pair) for pair in zip(loop, loop[1:] + loop[:1])}
    for triangles in _triangulations(loop):
        drawn = {frozenset(pair) for triangle in triangles for pair in combinations(triangle, 2)}
        if not any(_on_one_face(tuple(diagonal)) for diagonal in drawn - sides):
            break
    else:
        raise AssertionError(f"no manifold triangulation of the loop {loop}")
    # Outward means from the inside ends of the cut edges to their outside ends; the loop's area vector must point there.
    points = _MIDDLES[loop]
    area = np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0)
    ends = EDGES[loop]
    outward = np.where(inside[ends[:, :1]], 1, -1) * (CORNERS[ends[:, 1]] - CORNERS[ends[:, 0]])
    turned = (area @ outward.sum(axis=0)) < 0
    return [(a, c, b) if turned else (a, b, c) for a, b, c in triangles]


@lru_cache(maxsize=1)
def triangle_table() -> tuple[np.ndarray, np.ndarray]:
    """The triangles of all patterns; bit c of a pattern is set where corner c is inside.

    Returns:
        (256,) number of triangles, and (256, T, 3) their cut edges, wound counter-clockwise seen from outside, padded
        with -1.
    """
    rows = []
    for pattern in range(256):
        inside = np.array([pattern >> c & 1 for c in range(8)], dtype=bool)
        rows.append([t for loop in _loops(_face_lines(inside)) for t in _triangulate(loop, inside)])
    counts = np.array([len(row) for row in rows])
    table = np.full((256, counts.max(), 3), -1)
    for pattern, row in enumerate(rows):
        table[pattern, : len(row)] = np.reshape(row, (-1, 3))
    return counts, table

# SPDX-License-Identifier: Apache-2.0
"""Bilateral normal integration: depth from one view's normals, which may break where the surface does.

Cao, Santo, Shi, Okura and Matsushita, "Bilateral Normal Integration", ECCV 2022, in perspective: with zeta = log z, the
pixel's ray p = K^-1 (x, y, 1) and its normal n, fx (n . p) d zeta / dx = -n_x, and likewise along y. Each derivative is
taken to both neighbours; which of the two is believed is settled by weights that are solved for in turn with the depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import SuperLU, aslinearoperator, cg, splu
from scipy.special import expit

_GRAZING = 1e-3
"""Least |n . p|: beyond, the surface is seen edge-on and its slope is no longer a number to speak of."""
_MOST_CG_STEPS = 12
"""With an older factorisation; if they don't suffice, a new one is cheaper."""


@dataclass(frozen=True, eq=False)
class _Edges:
    """Pairs of neighbours along one axis, by their numbers on the mask, and each pixel's edge to either side."""

    lower: np.ndarray
    upper: np.ndarray
    slope: Float[np.ndarray, " m"]
    """Each pixel's f (n . p) for this axis."""
    component: Float[np.ndarray, " m"]
    """Each pixel's normal along this axis."""


def integrate_normals(
    normals: Float[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    K: Float[np.ndarray, "3 3"],
    k: float = 1.7,
    tolerance: float = 1e-5,
    max_rounds: int = 60,
) -> Float[np.ndarray, "h w"]:
    """z depth from normals, up to a factor.

    Parts of the mask that are not connected (by pixels side by side) have a factor each: nothing ties them together,
    and each is scaled to a mean log depth of zero. A pixel without neighbours gets depth 1.

    Args:
        normals: unit, OpenCV camera axes.
        mask: pixels to integrate.
        K: intrinsics in pixels, pixel centres at integers.
        k: how sharply a side is chosen; 0 gives plain least squares, which cannot break. The paper has 2, with solves
            that stop early, which holds breaks back; solved to the end, as here, it breaks too readily on smooth real
            objects. 1.7 was chosen on the very objects that benchmarks/bench_integration.py measures, and errors there
            change by up to 22% from 1.6 to 1.7; on synthetic shapes 1.7 and 2 are alike.
        tolerance: of the energy's relative change, at which the weights have settled.
        max_rounds: of weights and depth in turn; a dozen gives a rough depth quickly.

    Returns:
        (h, w) float64 z depth in camera axes, NaN off the mask.
    """
    out = np.full(mask.shape, np.nan)
    if not mask.any():
        return out
    number = np.full(mask.shape, -1)
    count = int(mask.sum())
    number[mask] = np.arange(count)
    y, x = np.nonzero(mask)
    rays = np.linalg.solve(K, np.stack([x, y, np.ones(count)])).T
    n = np.asarray(normals[mask], dtype=np.float64)
    along = (n * rays).sum(axis=1)
    along = np.where(np.abs(along) < _GRAZING, np.copysign(_GRAZING, along), along)
    axes = [
        _edges(number[:, :-1], number[:, 1:], K[0, 0] * along, n[:, 0]),
        _edges(number[:-1], number[1:], K[1, 1] * along, n[:, 1]),
    ]
    log_depth = _solve(axes, count, k, tolerance, max_rounds)
    joins = sp.coo_matrix(
        (
            np.ones(sum(len(e.lower) for e in axes)),
            (np.concatenate([e.lower for e in axes]), np.concatenate([e.upper for e in axes])),
        ),
        shape=(count, count),
    )
    parts, label = connected_components(joins, directed=False)
    means = np.bincount(label, weights=log_depth, minlength=parts) / np.bincount(label, minlength=parts)
    out[mask] = np.exp(log_depth - means[label])
    return out


def _edges(lower: np.ndarray, upper: np.ndarray, slope: np.ndarray, component: np.ndarray) -> _Edges:
    both = (lower >= 0) & (upper >= 0)
    return _Edges(lower[both], upper[both], slope, component)


def _solve(axes: list[_Edges], count: int, k: float, tolerance: float, max_rounds: int) -> Float[np.ndarray, " m"]:
    """Log depths by reweighted least squares; each round is a weighted graph Laplacian."""
    shares = [np.full(count, 0.5) for _ in axes]  # of the edge to the upper neighbour against that to the lower one
    system = _System(axes, count)
    z = np.zeros(count)
    energy = np.inf
    for _ in range(max_rounds):
        weights, rights = [], []
        for edges, share in zip(axes, shares):
            a, b = edges.lower, edges.upper
            # The lower pixel's upper edge and the upper pixel's lower edge are the same pair of unknowns.
            of_lower, of_upper = share[a] * edges.slope[a], (1 - share[b]) * edges.slope[b]
            weights.append(of_lower * edges.slope[a] + of_upper * edges.slope[b])
            rights.append(-(of_lower * edges.component[a] + of_upper * edges.component[b]))
        z = system.solve(weights, rights, z)
        before, energy = energy, 0.0
        for i, edges in enumerate(axes):
            a, b = edges.lower, edges.upper
            difference = z[b] - z[a]
            up, down = np.zeros(count), np.zeros(count)
            up[a] = edges.slope[a] * difference
            down[b] = edges.slope[b] * difference
            energy += (shares[i][a] * (up[a] + edges.component[a]) ** 2).sum()
            energy += ((1 - shares[i][b]) * (down[b] + edges.component[b]) ** 2).sum()
            shares[i] = expit(k * (down**2 - up**2))
        if abs(before - energy) < tolerance * energy:
            break
    return z


class _System:
    """Weighted graph Laplacians on the same edges: one sparsity, and a factorisation that serves several rounds."""

    def __init__(self, axes: list[_Edges], count: int) -> None:
        self.lower = np.concatenate([edges.lower for edges in axes])
        self.upper = np.concatenate([edges.upper for edges in axes])
        self.count = count
        rows = np.concatenate([self.lower, self.upper, np.arange(count)])
        columns = np.concatenate([self.upper, self.lower, np.arange(count)])
        # Where each entry goes in the compressed matrix: found once.
        pattern = sp.csc_matrix((np.arange(1, len(rows) + 1), (rows, columns)), shape=(count, count))
        self.order = pattern.data.astype(np.int64) - 1
        self.indices, self.indptr = pattern.indices, pattern.indptr
        self.factor: SuperLU | None = None

    def solve(self, weights: list[np.ndarray], rights: list[np.ndarray], start: np.ndarray) -> np.ndarray:
        """z that minimises the weighted squares of the edges' differences less what is wanted of them."""
        weight, right_edge = np.concatenate(weights), np.concatenate(rights)
        diagonal = np.bincount(self.lower, weight, self.count) + np.bincount(self.upper, weight, self.count)
        # Each part's mean is free: a trace of identity keeps the matrix regular and nothing else notices.
        diagonal += 1e-10 * max(float(diagonal.mean()), 1.0)
        data = np.concatenate([-weight, -weight, diagonal])[self.order]
        matrix = sp.csc_matrix((data, self.indices, self.indptr), shape=(self.count, self.count))
        right = np.bincount(self.upper, right_edge, self.count) - np.bincount(self.lower, right_edge, self.count)
        if self.factor is not None:
            preconditioner = aslinearoperator(_Inverse(self.factor))
            z, failed = cg(matrix, right, x0=start, rtol=1e-8, maxiter=_MOST_CG_STEPS, M=preconditioner)
            if not failed:
                return z
        factor = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        self.factor = factor
        return factor.solve(right)


class _Inverse:
    """A factorisation as the linear operator that it inverts."""

    def __init__(self, factor: SuperLU) -> None:
        self.shape, self.dtype, self.matvec = factor.shape, np.dtype(np.float64), factor.solve

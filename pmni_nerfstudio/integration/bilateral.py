# SPDX-License-Identifier: Apache-2.0
"""Bilateral normal integration: a depth map from a normal map, with discontinuities.

Cao, Santo, Shi, Okura and Matsushita, "Bilateral Normal Integration", ECCV 2022, in the perspective case: with
zeta = log z, the ray p = K^-1 (x, y, 1) of a pixel and its normal n, fx (n . p) d zeta / dx = -n_x, and likewise along y.
Each derivative is approximated by the differences to both neighbors, whose relative weights are updated in alternation
with the depth, so that differences across a discontinuity lose their weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import SuperLU, aslinearoperator, cg, splu
from scipy.special import expit

from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.geometry.hole_filling import fill_holes

_MIN_COSINE = 1e-3
"""Least |n . p|, because the depth gradient of a surface seen edge-on is unbounded."""
_HOLE_WEIGHT = 0.1
"""Factor on the equations of pixels without a normal, which only continue the depth of the others."""
_MAX_CG_STEPS = 12
"""Conjugate gradient steps preconditioned by an older factorization; if these do not suffice, a new one is cheaper."""


@dataclass(frozen=True, eq=False)
class _Edges:
    """Pairs of neighboring pixels along one image axis; m pixels on the mask, numbered in row-major order."""

    lower: np.ndarray
    """Number of each pair's left or upper pixel."""
    upper: np.ndarray
    """Number of each pair's right or lower pixel."""
    slope: Float[np.ndarray, " m"]
    """f (n . p) of each pixel, f being the focal length along this axis."""
    component: Float[np.ndarray, " m"]
    """Component of each pixel's normal along this axis."""


def integrate_normals(
    normals: Float[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    K: Float[np.ndarray, "3 3"],
    k: float = 1.7,
    tolerance: float = 1e-5,
    max_rounds: int = 60,
) -> Float[np.ndarray, "h w"]:
    """Integrate a normal map to a depth map, up to a scale factor.

    Parts of the mask that are not connected (4-connectivity) have independent scale factors; each is scaled to a mean log
    depth of zero. An isolated pixel has depth 1.

    Over holes, which have no normals, the depth is continued smoothly; it then keeps the scale of the parts around them.

    Args:
        normals: unit normals, OpenCV camera axes; zero in holes.
        mask: pixels to integrate.
        K: intrinsics in pixels, pixel centers at integers.
        k: sharpness of the choice between the two neighbors; 0 gives plain least squares without discontinuities. The
            paper uses 2 and stops its linear solver early, which suppresses discontinuities; with converged solutions,
            as here, 2 yields too many on smooth real objects. 1.7 was chosen on the objects that
            benchmarks/bench_integration.py measures, whose errors change by up to 22% from 1.6 to 1.7; on synthetic
            shapes, 1.7 and 2 are equivalent.
        tolerance: convergence criterion: relative change of the energy.
        max_rounds: maximum number of alternations of weights and depth; a dozen give a rough depth map.

    Returns:
        z depth in camera axes, float64, NaN off the mask, and everywhere if there are no normals.
    """
    out = np.full(mask.shape, np.nan)
    valid = mask & normals.any(axis=-1)
    if not valid.any():
        return out
    number = np.full(mask.shape, -1)
    count = int(mask.sum())
    number[mask] = np.arange(count)
    y, x = np.nonzero(mask)
    rays = pixel_directions(K, np.stack([x, y], axis=-1))
    n = np.asarray(fill_holes(normals, mask, valid)[mask], dtype=np.float64)
    cosine = (n * rays).sum(axis=1)
    cosine = np.where(np.abs(cosine) < _MIN_COSINE, np.copysign(_MIN_COSINE, cosine), cosine)
    is_hole = ~valid[mask]
    n[is_hole] *= _HOLE_WEIGHT
    cosine[is_hole] *= _HOLE_WEIGHT
    axes = [
        _edges(number[:, :-1], number[:, 1:], K[0, 0] * cosine, n[:, 0]),
        _edges(number[:-1], number[1:], K[1, 1] * cosine, n[:, 1]),
    ]
    log_depth = _solve(axes, count, k, tolerance, max_rounds)
    lower, upper = (np.concatenate(sides) for sides in zip(*((edges.lower, edges.upper) for edges in axes)))
    adjacency = sp.coo_matrix((np.ones(len(lower)), (lower, upper)), shape=(count, count))
    parts, label = connected_components(adjacency, directed=False)
    means = np.bincount(label, weights=log_depth, minlength=parts) / np.bincount(label, minlength=parts)
    out[mask] = np.exp(log_depth - means[label])
    return out


def _edges(lower: np.ndarray, upper: np.ndarray, slope: np.ndarray, component: np.ndarray) -> _Edges:
    both = (lower >= 0) & (upper >= 0)
    return _Edges(lower[both], upper[both], slope, component)


def _solve(axes: list[_Edges], count: int, k: float, tolerance: float, max_rounds: int) -> Float[np.ndarray, " m"]:
    """Log depths by iteratively reweighted least squares; each round solves a weighted graph Laplacian."""
    shares = [np.full(count, 0.5) for _ in axes]  # weight of the upper neighbor's edge; the lower one has the rest
    system = _System(axes, count)
    z = np.zeros(count)
    energy = np.inf
    for _ in range(max_rounds):
        weights, rights = [], []
        for edges, share in zip(axes, shares):
            a, b = edges.lower, edges.upper
            # Both pixels of a pair have an equation for the difference of the same two unknowns.
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
    """Weighted graph Laplacians on the same edges: the sparsity pattern and a factorization are reused across rounds."""

    def __init__(self, axes: list[_Edges], count: int) -> None:
        self.lower = np.concatenate([edges.lower for edges in axes])
        self.upper = np.concatenate([edges.upper for edges in axes])
        self.count = count
        rows = np.concatenate([self.lower, self.upper, np.arange(count)])
        columns = np.concatenate([self.upper, self.lower, np.arange(count)])
        # Order of the entries in the compressed matrix.
        pattern = sp.csc_matrix((np.arange(1, len(rows) + 1), (rows, columns)), shape=(count, count))
        self.order = pattern.data.astype(np.int64) - 1
        self.indices, self.indptr = pattern.indices, pattern.indptr
        self.factor: SuperLU | None = None

    def solve(self, weights: list[np.ndarray], rights: list[np.ndarray], start: np.ndarray) -> np.ndarray:
        """Weighted least squares solution for log depths z from an initial guess.

        Args:
            weights: weights of the squared differences of z, one array per axis.
            rights: weights times prescribed differences of z, one array per axis.
            start: initial guess.
        """
        weight, right_edge = np.concatenate(weights), np.concatenate(rights)
        diagonal = np.bincount(self.lower, weight, self.count) + np.bincount(self.upper, weight, self.count)
        # The mean of each connected part is undetermined; a small multiple of the identity makes the matrix regular.
        diagonal += 1e-10 * max(float(diagonal.mean()), 1.0)
        data = np.concatenate([-weight, -weight, diagonal])[self.order]
        matrix = sp.csc_matrix((data, self.indices, self.indptr), shape=(self.count, self.count))
        right = np.bincount(self.upper, right_edge, self.count) - np.bincount(self.lower, right_edge, self.count)
        if self.factor is not None:
            preconditioner = aslinearoperator(_Inverse(self.factor))
            z, status = cg(matrix, right, x0=start, rtol=1e-8, maxiter=_MAX_CG_STEPS, M=preconditioner)
            if status == 0:
                return z
        self.factor = factor = splu(
            matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
        return factor.solve(right)


class _Inverse:
    """Inverse of a factorized matrix as a linear operator."""

    def __init__(self, factor: SuperLU) -> None:
        self.shape, self.dtype, self.matvec = factor.shape, np.dtype(np.float64), factor.solve

# SPDX-License-Identifier: Apache-2.0
"""Poisson equation in a narrow band: a signed distance whose gradient is a given normal field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from scipy.sparse.linalg import cg

from pmni_nerfstudio.registration.surface.pixel_normals import PixelNormals
from pmni_nerfstudio.registration.surface.sdf_grid import extend

_PIXELS_AT_ONCE = 1 << 18
"""Pixels whose equations are held at once: 200 MB. All of a large capture's would take more than the rest of registration."""


@dataclass(frozen=True, eq=False)
class Band:
    """Grid vertices near the surface of a volume over [-1, 1]^3, in the order of their flat indices."""

    index: np.ndarray
    """Flat indices (m,) into the volume."""
    points: Float[np.ndarray, "m 3"]
    """World positions of the vertices."""
    sdf: Float[np.ndarray, " m"]
    """Signed distances at the vertices."""

    @staticmethod
    def from_sdf(sdf: Float[np.ndarray, "n n n"], voxels: float) -> Band:
        """The vertices at a distance of less than `voxels` voxels."""
        n = len(sdf)
        index = np.flatnonzero(np.abs(sdf) < voxels * 2.0 / (n - 1))
        axis = np.linspace(-1.0, 1.0, n)
        points = np.stack([axis[i] for i in np.unravel_index(index, sdf.shape)], axis=1)
        return Band(index, points, sdf.reshape(-1)[index].astype(np.float64))


@dataclass(frozen=True)
class PoissonOptions:
    """Weights and stopping criteria of `band_poisson`; an edge between two well-observed vertices has weight 1."""

    zero_weight: float = 1.0
    """Weight of a point where the distance should be zero."""
    keep_weight: float = 1e-3
    """Weight of each vertex's previous distance, which determines the solution where there are no observations."""
    fused_weight: float = 0.02
    """Weight of the edges beside `PixelNormals` of weight 1: it continues their normals off the surface."""
    iterations: int = 60
    """Maximum number of conjugate gradient iterations."""
    tolerance: float = 1e-4
    """Relative residual at which conjugate gradients stop."""


def band_poisson(
    sdf: Float[np.ndarray, "n n n"],
    band: Band,
    normals: Float[np.ndarray, "m 3"],
    weights: Float[np.ndarray, " m"],
    zeros: Float[np.ndarray, "p 3"],
    floor: Float[np.ndarray, " m"] | None = None,
    options: PoissonOptions = PoissonOptions(),
    pixels: PixelNormals | None = None,
) -> Float[np.ndarray, "n n n"]:
    """Signed distance whose gradient follows a normal field in a narrow band.

    After Kazhdan and Hoppe, "Screened Poisson surface reconstruction" (TOG 2013), but for the gradient of a signed
    distance, not of an indicator function. Least squares over the band's vertices: the difference along each grid edge
    equals the edge's length times the mean normal of its ends, the distance is zero at given surface points, and
    otherwise stays near its previous value. With `pixels`, the gradient of the trilinear interpolation equals each pixel's
    normal at its point, which keeps the detail that the means over views and voxels lose; the edges then count little.

    Args:
        sdf: volume over [-1, 1]^3, 'ij' = x, y, z.
        band: band of that volume.
        normals: target gradient at each vertex of the band, unit or shorter.
        weights: confidence of each normal, 0 to 1.
        zeros: points on the surface, world; those outside the band are ignored.
        floor: lower bound at each vertex of the band (from a visual hull: no surface outside it).
        options: weights and stopping criteria.
        pixels: normals at single points of the surface, if any.

    Returns:
        The new volume; outside the band distances are approximate.
    """
    n = len(sdf)
    voxel = 2.0 / (n - 1)
    place = np.full(n**3, -1, dtype=np.int64)
    place[band.index] = np.arange(len(band.index))
    system, right = _gradient_equations(n, place, band.index, normals, weights)
    if pixels is not None:
        of_pixels, right_of_pixels = _pixel_equations(n, place, pixels, len(band.index))
        system = options.fused_weight * system + of_pixels
        right = options.fused_weight * right + right_of_pixels
    zero_rows = _trilinear_rows(n, place, zeros, len(band.index))
    system = system + options.zero_weight * (zero_rows.T @ zero_rows)
    system = (system + options.keep_weight * sp.identity(len(band.index))).tocsr()
    right = right + options.keep_weight * band.sdf
    inverse_diagonal = 1 / system.diagonal()
    preconditioner = sp.linalg.LinearOperator(system.shape, matvec=lambda x: inverse_diagonal * x)
    solution, _ = cg(system, right, x0=band.sdf, maxiter=options.iterations, rtol=options.tolerance, M=preconditioner)
    reach = np.abs(band.sdf).max()
    solution = solution.clip(-reach, reach)
    if floor is not None:
        solution = np.maximum(solution, floor)
    out = np.array(sdf, dtype=np.float32)
    out.reshape(-1)[band.index] = solution
    return extend(out, (place >= 0).reshape(sdf.shape), voxel, steps=3)


def _gradient_equations(
    n: int, place: np.ndarray, index: np.ndarray, normals: np.ndarray, weights: np.ndarray
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Normal equations of the differences along edges: weighted Laplacian, and divergence of the normals."""
    count, voxel = len(index), 2.0 / (n - 1)
    diagonal, right = np.zeros(count), np.zeros(count)
    rows, columns, values = [], [], []
    for axis, stride in enumerate((n * n, n, 1)):
        lower = np.flatnonzero((index // stride) % n < n - 1)
        upper = place[index[lower] + stride]
        lower, upper = lower[upper >= 0], upper[upper >= 0]
        weight = 0.5 * (weights[lower] + weights[upper])
        target = weight * voxel * 0.5 * (normals[lower, axis] + normals[upper, axis])
        # Indices are unique: along one axis a vertex has one edge to each side.
        diagonal[lower] += weight
        diagonal[upper] += weight
        right[lower] -= target
        right[upper] += target
        rows.append(lower)
        columns.append(upper)
        values.append(-weight)
    off = sp.coo_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(count, count))
    off = off.tocsr()
    return (off + off.T + sp.diags(diagonal)).tocsr(), right


def _pixel_equations(n: int, place: np.ndarray, pixels: PixelNormals, count: int) -> tuple[sp.csr_matrix, np.ndarray]:
    """Normal equations of the gradients of the trilinear interpolation, in units of a voxel, at the pixels' points."""
    system, right = sp.csr_matrix((count, count)), np.zeros(count)
    for start in range(0, len(pixels.points), _PIXELS_AT_ONCE):
        part = slice(start, start + _PIXELS_AT_ONCE)
        columns, share, whole = _cells(n, place, pixels.points[part])
        factor = np.sqrt(pixels.weights[part][whole])[:, None]
        targets = pixels.normals[part][whole] * (2.0 / (n - 1))
        along = np.where(_CORNERS, share[:, None], 1 - share[:, None])
        rows = np.repeat(np.arange(len(columns)), 8)
        for axis in range(3):
            first, second = (other for other in range(3) if other != axis)
            slopes = np.where(_CORNERS[:, axis], 1.0, -1.0) * along[..., first] * along[..., second] * factor
            equations = sp.csr_matrix((slopes.ravel(), (rows, columns.ravel())), shape=(len(columns), count))
            system = system + equations.T @ equations
            right += equations.T @ (factor[:, 0] * targets[:, axis])
    return system, right


def _trilinear_rows(n: int, place: np.ndarray, points: np.ndarray, count: int) -> sp.csr_matrix:
    """Trilinear interpolation weights, one row for each point whose cell lies entirely in the band."""
    columns, share, _ = _cells(n, place, points)
    values = np.where(_CORNERS, share[:, None], 1 - share[:, None]).prod(axis=-1)
    rows = np.repeat(np.arange(len(columns)), 8)
    return sp.csr_matrix((values.ravel(), (rows, columns.ravel())), shape=(len(columns), count))


_CORNERS = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)
"""Offsets of a cell's corners from its first one."""


def _cells(
    n: int, place: np.ndarray, points: np.ndarray
) -> tuple[Int[np.ndarray, "q 8"], Float[np.ndarray, "q 3"], Bool[np.ndarray, " p"]]:
    """Cells of the points, without points whose cell is not entirely in the band.

    Returns:
        Band vertices at the corners of each cell, the point's position in it, from 0 to 1, and the points that have one.
    """
    scaled = (points + 1) * (n - 1) / 2
    corner = np.floor(scaled).astype(np.int64)
    inside = ((corner >= 0) & (corner < n - 1)).all(axis=1)
    at = corner[inside, None] + _CORNERS
    columns = place[(at[..., 0] * n + at[..., 1]) * n + at[..., 2]]
    whole = (columns >= 0).all(axis=1)
    inside[inside] = whole
    return columns[whole], (scaled - corner)[inside], inside

# SPDX-License-Identifier: Apache-2.0
"""Band-limited Poisson: a signed distance whose gradient is a given normal field, near a surface and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float
from scipy.sparse.linalg import cg

from pmni_nerfstudio.registration.surface.sdf_grid import extend


@dataclass(frozen=True, eq=False)
class Band:
    """Voxels near the surface of a volume over [-1, 1]^3, in the order of their flat indices."""

    index: np.ndarray
    """(m,) flat indices."""
    points: Float[np.ndarray, "m 3"]
    """Their places."""
    sdf: Float[np.ndarray, " m"]

    @staticmethod
    def of(sdf: Float[np.ndarray, "n n n"], voxels: float) -> Band:
        """Those with a distance under so many voxels."""
        n = len(sdf)
        index = np.flatnonzero(np.abs(sdf) < voxels * 2.0 / (n - 1))
        axis = np.linspace(-1.0, 1.0, n)
        points = np.stack([axis[i] for i in np.unravel_index(index, sdf.shape)], axis=1)
        return Band(index, points, sdf.reshape(-1)[index].astype(np.float64))


@dataclass(frozen=True)
class PoissonOptions:
    """Weights of what is asked of the solution, relative to one edge between two well-observed voxels."""

    zero_weight: float = 1.0
    """Of a point where the distance should be zero."""
    keep_weight: float = 1e-3
    """Of the distance before, voxel by voxel: holds what nothing else does."""
    iterations: int = 60
    """Of conjugate gradients."""
    tolerance: float = 1e-4


def band_poisson(
    sdf: Float[np.ndarray, "n n n"],
    band: Band,
    normals: Float[np.ndarray, "m 3"],
    weights: Float[np.ndarray, " m"],
    zeros: Float[np.ndarray, "p 3"],
    floor: Float[np.ndarray, " m"] | None = None,
    options: PoissonOptions = PoissonOptions(),
) -> Float[np.ndarray, "n n n"]:
    """Signed distance that follows a normal field in a band (after Kazhdan and Hoppe, "Screened Poisson surface
    reconstruction", TOG 2013, with the gradient itself and not an indicator's).

    Least squares over the band's voxels: the difference along each grid edge is the voxel's edge times the mean normal
    of its ends, the distance is zero at given points, and it stays near what it was.

    Args:
        sdf: volume over [-1, 1]^3, 'ij' = x, y, z.
        band: of that volume.
        normals: the wanted gradient at each of the band's voxels, unit or shorter.
        weights: how far each normal is to be believed, 0 to 1.
        zeros: points on the surface, world; those off the band are left out.
        floor: least value of each voxel of the band (a hull: no surface outside it).
        options: weights and the solver's end.

    Returns:
        The new volume; off the band it holds rough distances.
    """
    n = len(sdf)
    voxel = 2.0 / (n - 1)
    place = np.full(n**3, -1, dtype=np.int64)
    place[band.index] = np.arange(len(band.index))
    system, right = _gradient_equations(n, place, band.index, normals, weights)
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
    known = np.zeros(n**3, dtype=bool)
    known[band.index] = True
    return extend(out, known.reshape(sdf.shape), voxel, steps=3)


def _gradient_equations(
    n: int, place: np.ndarray, index: np.ndarray, normals: np.ndarray, weights: np.ndarray
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Normal equations of `difference along an edge = edge's length times mean normal`: Laplacian and divergence."""
    count, voxel = len(index), 2.0 / (n - 1)
    diagonal, right = np.zeros(count), np.zeros(count)
    rows, columns, values = [], [], []
    for axis, stride in enumerate((n * n, n, 1)):
        lower = np.flatnonzero((index // stride) % n < n - 1)
        upper = place[index[lower] + stride]
        lower, upper = lower[upper >= 0], upper[upper >= 0]
        weight = 0.5 * (weights[lower] + weights[upper])
        wanted = weight * voxel * 0.5 * (normals[lower, axis] + normals[upper, axis])
        # Along one axis a voxel has one edge to each side: its place occurs once in each list.
        diagonal[lower] += weight
        diagonal[upper] += weight
        right[lower] -= wanted
        right[upper] += wanted
        rows.append(lower)
        columns.append(upper)
        values.append(-weight)
    off = sp.coo_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(count, count))
    off = off.tocsr()
    return (off + off.T + sp.diags(diagonal)).tocsr(), right


def _trilinear_rows(n: int, place: np.ndarray, points: np.ndarray, count: int) -> sp.csr_matrix:
    """A row for each point whose cell is wholly in the band: its weights on the cell's corners."""
    scaled = (points + 1) * (n - 1) / 2
    corner = np.floor(scaled).astype(np.int64)
    inside = ((corner >= 0) & (corner < n - 1)).all(axis=1)
    corner, share = corner[inside], (scaled - corner)[inside]
    steps = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)
    at = corner[:, None] + steps
    columns = place[(at[..., 0] * n + at[..., 1]) * n + at[..., 2]]
    values = np.where(steps, share[:, None], 1 - share[:, None]).prod(axis=-1)
    whole = (columns >= 0).all(axis=1)
    columns, values = columns[whole], values[whole]
    rows = np.repeat(np.arange(len(columns)), 8)
    return sp.csr_matrix((values.ravel(), (rows, columns.ravel())), shape=(len(columns), count))

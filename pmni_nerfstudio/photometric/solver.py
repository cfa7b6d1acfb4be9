# SPDX-License-Identifier: Apache-2.0
"""Robust Lambertian photometric stereo of many pixels at once.

Woodham, "Photometric method for determining surface orientation from multiple images", Optical Engineering 1980: the
image value of a matte pixel is its albedo times the cosine between normal and light. Shadows and highlights break this,
in some of the images. Values that are shadowed, clipped, or by rank among a pixel's darkest or brightest are left out, and
albedo times normal minimizes the sum of absolute residuals of the others, by iteratively reweighted least squares.

Libraries that were looked at: yasumat/RobustPhotometricStereo has the same estimators (L1, sparse Bayesian learning,
robust PCA), but is not a package, and solves pixel by pixel in Python processes; yqueau/robust_ps, yqueau/near_ps and PSBox
are MATLAB code; HALCON is closed; AliceVision's solver is a program of its own. Learned methods (SDM-UniPS, PS-FCN) need
weights and a GPU; `pmni prepare` reads their normal maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

MIN_LIGHTS = 3
"""Fewest values that determine albedo and normal of a pixel."""
_WANTED_LIGHTS = 6
"""Values that rank rejection leaves to a pixel, if it has as many that are neither shadowed nor clipped."""
_PEAK_SHARE = 0.2
"""Share of a pixel's maximum that stands for its upper quartile where most lights are in shadow."""
_PRODUCTS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""Components of the six different entries of a symmetric 3x3 matrix."""
_RIDGE = 1e-7
"""Multiple of a normal matrix's trace that is added to its diagonal."""
_SINGULAR = 4e-8
"""Multiple of a normal matrix's trace cubed below which its determinant counts as zero: the lights are nearly in
one plane."""
_FLOOR = 1e-3
"""Residual, as a multiple of the pixel's maximum, below which weights stay the same."""
_KEPT_SHARE = 0.8
"""Share of the pixels that still change below which the others are removed from the arrays."""
_CHANGE = 5e-4
"""Relative change of a pixel's solution below which it has converged."""


@dataclass(frozen=True)
class SolverOptions:
    """Settings of the robust solver."""

    drop_dark: float = 0.4
    """Share of a pixel's values, the darkest, that are not used."""
    drop_bright: float = 0.2
    """Share of a pixel's values, the brightest, that are not used."""
    shadow: float = 0.1
    """A value below this multiple of the pixel's upper quartile, or of a fifth of its maximum, is in shadow."""
    highlight: float = 0.15
    """A value is a highlight if it exceeds the matte model by this multiple of the pixel's albedo."""
    steps: int = 20
    """Maximum number of reweighting steps."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Result for p pixels under n lights."""

    scaled_normals: Float[np.ndarray, "p 3"]
    """Albedo times unit normal, in the axes of the lights; zero where not `solved`."""
    used: Bool[np.ndarray, "p n"]
    """Values that the fit used."""
    shadowed: Bool[np.ndarray, "p n"]
    """Values below the shadow threshold."""
    highlights: Bool[np.ndarray, "p n"]
    """Values far above the matte model."""
    residual: Float[np.ndarray, " p"]
    """Mean absolute residual of the used values, relative to their mean; infinity where not `solved`."""
    unexplained: Float[np.ndarray, " p"]
    """Mean absolute residual over mean absolute deviation from the mean, of all values that are lit and not clipped: 0 if the
    model explains how the values change with the light, 1 if a constant does as well."""
    solved: Bool[np.ndarray, " p"]
    """Pixels with enough usable values, whose lights are not in one plane."""


def solve(
    values: Float[np.ndarray, "p n"],
    clipped: Bool[np.ndarray, "p n"],
    directions: Float[np.ndarray, "n 3"] | Float[np.ndarray, "p n 3"],
    options: SolverOptions = SolverOptions(),
) -> Solution:
    """Albedo times normal of each pixel.

    All pixels are solved at once; callers bound the memory by the number of pixels.

    Args:
        values: linear image values over the light's intensity and attenuation, float32.
        clipped: values that are saturated, and never used.
        directions: unit vectors towards the lights, of all pixels or of each.
        options: settings of the solver.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    directions = np.ascontiguousarray(directions, dtype=np.float32)
    used, shadowed = usable_values(values, clipped, options)
    scaled, regular = least_absolute(values, used, directions, options.steps)
    solved = regular & (used.sum(axis=1) >= MIN_LIGHTS)
    scaled[~solved] = 0
    used &= solved[:, None]
    misfit = values - np.maximum(shading(scaled, directions), 0)
    distance = np.abs(misfit)
    total, absolute = _sums(values, used), _sums(distance, used)
    residual = np.divide(absolute, total, out=np.full(len(values), np.inf, np.float32), where=solved & (total > 0))
    albedo = np.linalg.norm(scaled, axis=1, keepdims=True)
    highlights = solved[:, None] & (misfit > options.highlight * albedo)
    lit = ~(shadowed | clipped)
    mean = _sums(values, lit) / np.maximum(lit.sum(axis=1), 1)
    spread = _sums(np.abs(values - mean[:, None]), lit)
    unexplained = np.divide(_sums(distance, lit), spread, out=np.zeros_like(spread), where=spread > 0)
    return Solution(scaled, used, shadowed, highlights, residual, unexplained, solved)


def least_absolute(
    values: Float[np.ndarray, "p n"], used: Bool[np.ndarray, "p n"], directions: np.ndarray, steps: int
) -> tuple[Float[np.ndarray, "p 3"], Bool[np.ndarray, " p"]]:
    """Albedo times normal with the least sum of absolute residuals, and whether the used lights determine it."""
    products = np.stack([directions[..., i] * directions[..., j] for i, j in _PRODUCTS], axis=-1)
    system = np.concatenate([products, directions], axis=-1)
    is_shared = directions.ndim == 2
    # Residuals below this count alike; weights are multiples of its inverse.
    floor = np.maximum(_FLOOR * values.max(axis=1, initial=0.0), np.float32(1e-12))[:, None]
    choice = used.astype(np.float32)
    weights = choice
    out = np.zeros((len(values), 3), np.float32)
    determined = np.zeros(len(values), dtype=bool)
    rows = np.arange(len(values))
    for step in range(steps):
        new, regular = _weighted_solution(weights, values, system)
        if step == 0:
            determined = regular
        going = np.abs(new - out[rows]).max(axis=1) > _CHANGE * np.abs(new).max(axis=1)
        out[rows] = new
        count = np.count_nonzero(going)
        if count == 0:
            break
        if count < _KEPT_SHARE * len(rows):
            rows, values, choice, floor, new = rows[going], values[going], choice[going], floor[going], new[going]
            if not is_shared:
                system, directions = system[going], directions[going]
        weights = shading(new, directions)
        weights -= values
        np.abs(weights, out=weights)
        np.maximum(weights, floor, out=weights)
        np.divide(floor, weights, out=weights)
        weights *= choice
    return out, determined


def usable_values(
    values: Float[np.ndarray, "p n"], clipped: Bool[np.ndarray, "p n"], options: SolverOptions
) -> tuple[Bool[np.ndarray, "p n"], Bool[np.ndarray, "p n"]]:
    """Values to fit, and values in shadow.

    By rank, the darkest and brightest shares are left out, and always shadowed and clipped ones. Pixels with many shadows
    get brighter values back, then darker ones, until they have _WANTED_LIGHTS.
    """
    count = values.shape[1]
    rank_value = np.where(clipped, np.float32(np.inf), values)
    ordered = np.sort(rank_value, axis=1)
    rows = np.arange(len(values))
    last = count - clipped.sum(axis=1)
    brightest = ordered[rows, np.maximum(last - 1, 0)]
    quartile = ordered[rows, np.clip((3 * (count - 1)) // 4, 0, np.maximum(last - 1, 0))]
    shadowed = values <= options.shadow * np.maximum(quartile, _PEAK_SHARE * brightest)[:, None]
    num_shadowed = (shadowed & ~clipped).sum(axis=1)
    start = np.maximum(round(options.drop_dark * count), num_shadowed)
    stop = np.minimum(count - round(options.drop_bright * count), last)
    stop = np.clip(start + _WANTED_LIGHTS, stop, last)
    start = np.maximum(np.minimum(start, stop - _WANTED_LIGHTS), num_shadowed)
    low = ordered[rows, np.clip(start, 0, count - 1)]
    high = ordered[rows, np.clip(stop - 1, 0, count - 1)]
    used = (rank_value >= low[:, None]) & (rank_value <= high[:, None]) & ~clipped & ~shadowed
    return used & (stop > start)[:, None], shadowed


def _sums(values: Float[np.ndarray, "p n"], where: Bool[np.ndarray, "p n"]) -> Float[np.ndarray, " p"]:
    """Sum of the chosen values of each pixel; faster than NumPy's sums with a condition."""
    return np.einsum("pn,pn->p", values, where.astype(np.float32))


def shading(scaled: Float[np.ndarray, "p 3"], directions: np.ndarray) -> Float[np.ndarray, "p n"]:
    """Values of the matte model without clamping: negative in attached shadows."""
    if directions.ndim == 2:
        return scaled @ directions.T
    return np.matmul(directions, scaled[..., None])[..., 0]


def _weighted_solution(
    weights: Float[np.ndarray, "p n"], values: Float[np.ndarray, "p n"], system: np.ndarray
) -> tuple[Float[np.ndarray, "p 3"], Bool[np.ndarray, " p"]]:
    """Weighted least squares solution of each pixel by the cofactors of its normal matrix.

    Args:
        weights: weights of the values, from 0 to 1.
        values: right-hand sides.
        system: six products of direction components (see _PRODUCTS) and the directions, (n, 9) or (p, n, 9).

    Returns:
        Solutions, and whether the matrix is regular.
    """
    if system.ndim == 2:
        matrix, right = weights @ system[:, :6], (weights * values) @ system[:, 6:]
    else:
        matrix = np.matmul(weights[:, None], system[..., :6])[:, 0]
        right = np.matmul((weights * values)[:, None], system[..., 6:])[:, 0]
    xx, yy, zz, yz, xz, xy = matrix.T.astype(np.float64)
    bx, by, bz = right.T.astype(np.float64)
    trace = xx + yy + zz
    xx, yy, zz = (diagonal + _RIDGE * trace for diagonal in (xx, yy, zz))
    c_xx, c_yy, c_zz = yy * zz - yz * yz, xx * zz - xz * xz, xx * yy - xy * xy
    c_xy, c_xz, c_yz = xz * yz - xy * zz, xy * yz - xz * yy, xy * xz - xx * yz
    determinant = xx * c_xx + xy * c_xy + xz * c_xz
    regular = determinant > _SINGULAR * trace**3
    inverse = np.divide(1.0, determinant, out=np.zeros_like(determinant), where=regular)
    solution = np.stack(
        [
            c_xx * bx + c_xy * by + c_xz * bz,
            c_xy * bx + c_yy * by + c_yz * bz,
            c_xz * bx + c_yz * by + c_zz * bz,
        ],
        axis=1,
    )
    return (solution * inverse[:, None]).astype(np.float32), regular

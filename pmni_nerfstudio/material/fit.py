# SPDX-License-Identifier: Apache-2.0
"""Roughness and specular of an object by robust least squares on all views and lights, with an albedo for each point.

The model is linear in everything but the roughness: a point's image values are its albedo times the diffuse part of
`microfacet.reflection`, plus the specular strength times the layer. For a given roughness, albedo and strength are
eliminated (variable projection: Golub and Pereyra, SIAM Journal on Numerical Analysis 1973), and a search in one variable
remains. Cauchy weights bound the influence of interreflections, of errors of the shape, and of shadow borders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.optimize import minimize_scalar

from pmni_nerfstudio.material.microfacet import Cosines, reflection

_ROUGHNESS = np.array([0.1, 0.15, 0.2, 0.27, 0.35, 0.45, 0.55, 0.67, 0.8, 1.0])
"""Values between which the search is refined."""
_ROUNDS = 6


class LitSamples(NamedTuple):
    """m image values of surface points, sorted by point; each is lit and neither clipped nor near a silhouette."""

    point: Int[np.ndarray, " m"]
    """Index of the point, from 0 to the number of points - 1, each of which occurs."""
    values: Float32[np.ndarray, "m c"]
    """Linear values over the lights' intensities."""
    cosines: Cosines
    strength: Float32[np.ndarray, " m"]
    """Attenuation of the light."""


@dataclass(frozen=True)
class MaterialFit:
    """Result of a fit, in units of the image values over the intensities."""

    roughness: float
    layer: float
    """Strength of the specular layer: the exposure times glTF's specular factor."""
    residual: float
    """Median absolute residual, relative to the mean value."""
    gain: float
    """Share by which the layer lowers the robust cost of a matte surface."""
    roughness_range: tuple[float, float]
    """Values of the roughness at which the layer keeps nine tenths of this gain."""
    albedo: Float[np.ndarray, "p c"]
    """Diffuse albedo of the points, times the exposure."""


class _Point(NamedTuple):
    """Solution at one roughness."""

    cost: float
    layer: float
    albedo: Float[np.ndarray, "p c"]
    residual: Float[np.ndarray, "m c"]


def fit_material(samples: LitSamples) -> MaterialFit:
    """Fit the roughness and the strength of the specular layer, and the albedo of each point.

    Args:
        samples: of all views and lights.
    """
    first = np.flatnonzero(np.diff(samples.point, prepend=-1))
    matte = _solve(samples, first, None, None)
    scale = _scale(matte)
    start = min((_solve(samples, first, float(r), scale) for r in _ROUGHNESS), key=lambda solution: solution.cost)
    # Residuals of the best of these are smaller than those of a matte surface, whose highlights are outliers.
    scale = _scale(start)

    def cost(log_roughness: float) -> float:
        return _solve(samples, first, float(np.exp(log_roughness)), scale).cost

    logs = np.log(_ROUGHNESS)
    costs = np.array([cost(value) for value in logs])
    best = int(costs.argmin())
    bounds = (logs[max(best - 1, 0)], logs[min(best + 1, len(logs) - 1)])
    found: Any = minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 0.01})
    roughness = float(np.exp(found.x))
    solution = _solve(samples, first, roughness, scale)
    matte = _solve(samples, first, None, scale)
    order = np.argsort([*logs, found.x])
    profile = np.array([*costs, solution.cost])[order]
    return MaterialFit(
        roughness,
        solution.layer,
        float(np.median(np.abs(solution.residual)) / samples.values.mean()),
        1 - solution.cost / matte.cost,
        _range(np.array([*logs, found.x])[order], profile, solution.cost + 0.1 * (matte.cost - solution.cost)),
        solution.albedo,
    )


def _range(
    logs: Float[np.ndarray, " r"], costs: Float[np.ndarray, " r"], limit: float
) -> tuple[float, float]:
    """Roughness between which the costs stay below a limit, by linear interpolation of the profile."""
    best = int(costs.argmin())
    ends = []
    for step in (-1, 1):
        index = best
        while 0 <= index + step < len(costs) and costs[index + step] < limit:
            index += step
        if not 0 <= index + step < len(costs):
            ends.append(logs[index])
            continue
        share = (limit - costs[index]) / (costs[index + step] - costs[index])
        ends.append(logs[index] + share * (logs[index + step] - logs[index]))
    return float(np.exp(ends[0])), float(np.exp(ends[1]))


def _scale(solution: _Point) -> float:
    """Residual at which the weight of a value is halved: three times the robust standard deviation."""
    return max(3 * 1.4826 * float(np.median(np.abs(solution.residual))), 1e-6)


def _solve(samples: LitSamples, first: Int[np.ndarray, " p"], roughness: float | None, scale: float | None) -> _Point:
    """Albedo and layer at one roughness, by iteratively reweighted least squares; roughness None: without a layer.

    Without a scale, the first weights stay, which are those of plain least squares.
    """
    diffuse, layer = reflection(samples.cosines, roughness or 1.0)
    a = (diffuse * samples.strength).astype(np.float64)
    b = (layer * samples.strength).astype(np.float64) if roughness else np.zeros(len(a))
    values, point = samples.values.astype(np.float64), samples.point
    weight = np.ones(len(a))

    def total(x: np.ndarray) -> np.ndarray:
        return np.add.reduceat(x, first, axis=0)

    strength, residual, albedo = 0.0, values, np.zeros((len(first), values.shape[1]))
    for _ in range(1 if scale is None else _ROUNDS):
        wa = weight * a
        norm = np.maximum(total(wa * a), 1e-12)
        of_values, of_layer = total(wa[:, None] * values) / norm[:, None], total(wa * b) / norm
        if roughness:
            # What the albedo cannot explain of the layer and of the values.
            rest = b - of_layer[point] * a
            left = values - of_values[point] * a[:, None]
            square = values.shape[1] * float((weight * rest * rest).sum())
            strength = max(float((weight * rest * left.sum(axis=1)).sum()) / max(square, 1e-12), 0.0)
        albedo = (of_values - strength * of_layer[:, None]).clip(0)
        residual = values - albedo[point] * a[:, None] - strength * b[:, None]
        if scale is not None:
            weight = 1 / (1 + np.square(np.abs(residual).max(axis=1) / scale))
    cost = 0.0 if scale is None else float(np.log1p(np.square(np.abs(residual).max(axis=1) / scale)).sum())
    return _Point(cost, strength, albedo, residual)

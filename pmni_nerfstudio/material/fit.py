# SPDX-License-Identifier: Apache-2.0
"""Fit of roughness and specular layer to the images of all views and lights, with an albedo for each surface element.

The fit is robust least squares. The model is linear in everything but the roughness. An image value is the sum of the
albedo times the diffuse reflection (the first part of `microfacet.reflection`, and interreflection), and of the
layer's strength times the specular reflection (the second part). For a given roughness, albedo and strength are
eliminated (variable projection: Golub and Pereyra, SIAM Journal on Numerical Analysis 1973), and a search in one
variable remains. Cauchy weights bound the influence of errors of the shape, and of shadow borders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.optimize import minimize_scalar

from pmni_nerfstudio.material.microfacet import DIFFUSE_SHARE, reflection
from pmni_nerfstudio.material.samples import LitSamples

Kind = Literal["matte", "dielectric", "metal"]
LEAST_ROUGHNESS = 0.1
_LOGS = np.log([LEAST_ROUGHNESS, 0.15, 0.2, 0.27, 0.35, 0.45, 0.55, 0.67, 0.8, 1.0])
"""Logarithms of the roughness between which the search is refined."""
_ROUNDS = 5


@dataclass(frozen=True)
class MaterialFit:
    """Result of a fit, in units of the image values over the intensities."""

    kind: Kind
    roughness: float
    layer: float
    """Strength of the specular layer: the exposure times glTF's specular factor; zero for metals and matte surfaces."""
    residual: float
    """Median absolute residual, relative to the mean value."""
    gain: float
    """Share by which the specular reflection lowers the robust cost of a matte surface."""
    roughness_range: tuple[float, float]
    """Values of the roughness at which nine tenths of this gain remain."""
    elements: Int[np.ndarray, " p"]
    """Elements with an albedo."""
    albedo: Float[np.ndarray, "p c"]
    """Their base color times the exposure."""


class _Solution(NamedTuple):
    """Solution at one roughness."""

    cost: float
    layer: float
    albedo: Float[np.ndarray, "p c"]
    residual: Float[np.ndarray, "m c"]


def fit_material(
    samples: LitSamples,
    indirect: Float32[np.ndarray, " m"] | None = None,
    kinds: Sequence[Kind] = ("dielectric", "metal"),
) -> MaterialFit:
    """Fit a dielectric and a metal, and choose the one with the smaller residuals.

    Args:
        samples: of all views and lights.
        indirect: irradiance of each sample by the rest of the surface; see `Interreflection.between`. None: zero.
        kinds: what to fit.
    """
    problem = _Problem(samples, indirect)
    # Highlights must not widen the scale of the residuals, which is that of the best plain fit.
    scale = min(problem.scale(solution) for kind in kinds for solution in problem.solve_all(kind, None))
    matte = problem.solve("matte", 1.0, scale)
    fits = [_search(problem, kind, scale, matte) for kind in kinds]
    return max(fits, key=lambda fit: fit.gain)


def matte_fit(samples: LitSamples, indirect: Float32[np.ndarray, " m"] | None = None) -> MaterialFit:
    """The albedo of a surface without highlights."""
    problem = _Problem(samples, indirect)
    solution = problem.solve("matte", 1.0, problem.scale(problem.solve("matte", 1.0, None)))
    residual = float(np.median(np.abs(solution.residual)) / samples.values.mean())
    return MaterialFit("matte", 1.0, 0.0, residual, 0.0, (1.0, 1.0), problem.elements, solution.albedo)


def _search(problem: _Problem, kind: Kind, scale: float, matte: _Solution) -> MaterialFit:
    """The roughness of the least cost."""
    costs = np.array([solution.cost for solution in problem.solve_all(kind, scale)])
    best = int(costs.argmin())
    found: Any = minimize_scalar(
        lambda log: problem.solve(kind, float(np.exp(log)), scale).cost,
        bounds=(_LOGS[max(best - 1, 0)], _LOGS[min(best + 1, len(_LOGS) - 1)]),
        method="bounded",
        options={"xatol": 0.02},
    )
    roughness = float(np.exp(found.x))
    solution = problem.solve(kind, roughness, scale)
    logs, costs = np.append(_LOGS, found.x), np.append(costs, solution.cost)
    order = logs.argsort()
    limit = solution.cost + 0.1 * (matte.cost - solution.cost)
    return MaterialFit(
        kind,
        roughness,
        solution.layer,
        float(np.median(np.abs(solution.residual)) / problem.values.mean()),
        1 - solution.cost / matte.cost,
        _range(logs[order], costs[order], limit),
        problem.elements,
        solution.albedo,
    )


def _range(logs: Float[np.ndarray, " r"], costs: Float[np.ndarray, " r"], limit: float) -> tuple[float, float]:
    """Roughness between which the costs stay below a limit, by linear interpolation."""
    ends = []
    for step in (-1, 1):
        index = int(costs.argmin())
        while 0 <= index + step < len(costs) and costs[index + step] < limit:
            index += step
        end = logs[index]
        if 0 <= index + step < len(costs):
            end += (limit - costs[index]) / (costs[index + step] - costs[index]) * (logs[index + step] - end)
        ends.append(float(np.exp(end)))
    return ends[0], ends[1]


class _Problem:
    """The least squares problem of one capture."""

    def __init__(self, samples: LitSamples, indirect: Float32[np.ndarray, " m"] | None) -> None:
        self._samples = samples
        self.values = samples.values.astype(np.float64)
        self.elements, self._first, self._row = np.unique(samples.element, return_index=True, return_inverse=True)
        self._indirect = 0.0 if indirect is None else DIFFUSE_SHARE * indirect.astype(np.float64)

    def scale(self, solution: _Solution) -> float:
        """Residual at which the weight of a value is halved: three times the robust standard deviation."""
        return max(3 * 1.4826 * float(np.median(np.abs(solution.residual))), 1e-6 * float(self.values.mean()))

    def solve_all(self, kind: Kind, scale: float | None) -> list[_Solution]:
        """Solutions at the values of roughness that the search begins with."""
        return [self.solve(kind, float(np.exp(log)), scale) for log in _LOGS]

    def solve(self, kind: Kind, roughness: float, scale: float | None) -> _Solution:
        """Albedo and layer at one roughness, by iteratively reweighted least squares.

        Args:
            kind: of the surface.
            roughness: perceptual roughness; without effect on matte surfaces.
            scale: residual at which the weight of a value is halved; None: plain least squares.
        """
        base, layer = reflection(self._samples.cosines, roughness, kind == "metal")
        light = self._samples.strength.astype(np.float64)
        base, layer = base * light, layer * light
        if kind != "metal":
            base = base + self._indirect
        weight = np.ones(len(base))
        strength, albedo, residual = 0.0, np.zeros((len(self._first), self.values.shape[1])), self.values
        for _ in range(1 if scale is None else _ROUNDS):
            weighted = weight * base
            norm = np.maximum(self._total(weighted * base), 1e-12)
            # Albedos that fit the values, and the layer, best.
            of_values = self._total(weighted[:, None] * self.values) / norm[:, None]
            of_layer = self._total(weighted * layer) / norm
            if kind == "dielectric":
                # Parts of the layer and of the values that are orthogonal to what the albedo explains.
                rest = layer - of_layer[self._row] * base
                left = (self.values - of_values[self._row] * base[:, None]).mean(axis=1)
                strength = max(float((weight * rest * left).sum() / max((weight * rest**2).sum(), 1e-12)), 0.0)
            albedo = (of_values - strength * of_layer[:, None]).clip(0)
            residual = self.values - albedo[self._row] * base[:, None] - strength * layer[:, None]
            if scale is not None:
                weight = 1 / (1 + np.square(np.abs(residual).max(axis=1) / scale))
        cost = 0.0 if scale is None else float(np.log1p(np.square(np.abs(residual).max(axis=1) / scale)).sum())
        return _Solution(cost, strength, albedo, residual)

    def _total(self, x: np.ndarray) -> np.ndarray:
        return np.add.reduceat(x, self._first, axis=0)

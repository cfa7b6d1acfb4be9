# SPDX-License-Identifier: Apache-2.0
"""Relative poses of two views of which nothing is known: hypotheses by a search over all rotations."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from pmni_nerfstudio.geometry.sim3 import Sim3, rotation_grid, separated
from pmni_nerfstudio.registration.pairwise.integrated_depth import PyramidLevel
from pmni_nerfstudio.registration.pairwise.residuals import Kernels, gauss_newton_steps, pair_terms


@dataclass(frozen=True)
class RelativePoseOptions:
    """Options of the search for relative poses."""

    rotations: int = 3000
    """Rotations spread over SO(3), about 14 degrees from one to the next."""
    max_angle_deg: float = 60.0
    """Largest angle between the viewing directions of two views; the rotations beyond it are not searched."""
    search_kernels: Kernels = Kernels(0.4, 0.5, 0.4)
    """Kernels of the search, wide because the grid of rotations is coarse."""
    search_points: int = 50
    """Points per view in the search."""
    kernels: Kernels = Kernels(0.4, 0.25, 0.25)
    """Kernels that hypotheses are refined and compared with."""
    min_overlap: float = 0.35
    """Fraction of a view's points that the other should see; missing overlap is penalized as disagreement."""
    hypotheses: int = 4
    """Largest number of hypotheses per pair."""
    separation_deg: float = 15.0
    """Smallest angle between two hypotheses."""
    max_step: float = 0.4
    """Largest norm of a Gauss-Newton step (radians and object radii)."""


@dataclass(frozen=True, eq=False)
class PairHypotheses:
    """Hypotheses of the relative pose of one pair of views, best first."""

    relative: Sim3
    """Similarities from the source's object frame to the target's."""
    costs: Float[np.ndarray, " k"]
    """Cost of each, 0 to 1."""

    def inverse(self) -> PairHypotheses:
        """The hypotheses of the same pair, from target to source."""
        return PairHypotheses(self.relative.inverse(), self.costs)


class RelativePoseSearch:
    """Compares and searches relative poses of pairs of views, in both directions of each pair.

    Args:
        level: maps and points.
        options: options of the search.
    """

    def __init__(self, level: PyramidLevel, options: RelativePoseOptions = RelativePoseOptions()) -> None:
        self.level, self.options = level, options
        self._thinned = level.thinned(options.search_points)
        rotations = rotation_grid(options.rotations)
        self._rotations = rotations[rotations[:, 2, 2] > np.cos(np.radians(options.max_angle_deg))]

    def cost(
        self, source: Int[np.ndarray, " q"], target: Int[np.ndarray, " q"], relative: Sim3
    ) -> Float[np.ndarray, " q"]:
        """Cost of relative poses, 0 to 1; missing overlap counts as disagreement."""
        return self._cost(self.level, source, target, relative, self.options.kernels)

    def search(self, source: int, target: int) -> PairHypotheses:
        """Search the relative pose of a pair over all rotations within the angle; any in-plane rotation is possible.

        The object's centers are assumed to coincide at first. The best rotations are moved by Gauss-Newton steps, with
        few points and wide kernels, then with all points and narrower ones.
        """
        o, count = self.options, len(self._rotations)
        relative = Sim3(self._rotations, np.zeros((count, 3)), np.ones(count))
        i, j = np.full(count, source), np.full(count, target)
        costs = self._cost(self._thinned, i, j, relative, o.search_kernels)
        best = np.argsort(costs, kind="stable")[: count // 12]
        relative, costs = self._descend(self._thinned, i[best], j[best], relative[best], o.search_kernels, iterations=3)
        best = separated(relative.R, costs, o.separation_deg, 2 * o.hypotheses)
        relative, costs = self._descend(self.level, i[best], j[best], relative[best], o.kernels, iterations=6)
        best = separated(relative.R, costs, o.separation_deg, o.hypotheses)
        return PairHypotheses(relative[best], costs[best])

    def search_pairs(
        self, pairs: Int[np.ndarray, "q 2"], on_progress: Callable[[float], None] | None = None
    ) -> list[PairHypotheses]:
        """Search the relative poses of many pairs, on all cores."""
        out: list[PairHypotheses] = []
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for hypotheses in pool.map(lambda pair: self.search(int(pair[0]), int(pair[1])), pairs):
                out.append(hypotheses)
                if on_progress is not None:
                    on_progress(len(out) / len(pairs))
        return out

    def _cost(
        self, level: PyramidLevel, source: np.ndarray, target: np.ndarray, relative: Sim3, kernels: Kernels
    ) -> Float[np.ndarray, " q"]:
        """Cost of relative poses on one level."""
        forward = pair_terms(level, source, target, relative, kernels, derivatives=False)
        backward = pair_terms(level, target, source, relative.inverse(), kernels, derivatives=False)
        loss, weight = forward.loss + backward.loss, forward.weight + backward.weight
        return self._with_missing_overlap(level, source, target, kernels, loss, weight)

    def _with_missing_overlap(
        self,
        level: PyramidLevel,
        source: np.ndarray,
        target: np.ndarray,
        kernels: Kernels,
        loss: Float[np.ndarray, " q"],
        weight: Float[np.ndarray, " q"],
    ) -> Float[np.ndarray, " q"]:
        points = level.weights.numpy().sum(axis=1)
        expected = self.options.min_overlap * (1 + 2 * kernels.silhouette_weight) * (points[source] + points[target])
        missing = np.maximum(expected - weight, 0)
        return (loss + missing) / (weight + missing)

    def _linearize(
        self, level: PyramidLevel, source: np.ndarray, target: np.ndarray, relative: Sim3, kernels: Kernels
    ) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, "q 7"]]:
        """Cost and damped Gauss-Newton step of each relative pose, a twist in the source's frame."""
        forward = pair_terms(level, source, target, relative, kernels)
        backward = pair_terms(level, target, source, relative.inverse(), kernels)
        assert forward.hessian is not None and forward.gradient is not None
        assert backward.hessian is not None and backward.gradient is not None
        # A twist a in the source's frame is Ad a in the target's, and moves the inverse by -a in the source's frame.
        chain = relative.adjoint()
        hessian = np.swapaxes(chain, 1, 2) @ forward.hessian @ chain + backward.hessian
        gradient = np.einsum("qab,qa->qb", chain, forward.gradient) - backward.gradient
        loss, weight = forward.loss + backward.loss, forward.weight + backward.weight
        costs = self._with_missing_overlap(level, source, target, kernels, loss, weight)
        return costs, gauss_newton_steps(hessian, gradient, self.options.max_step)

    def _descend(
        self,
        level: PyramidLevel,
        source: np.ndarray,
        target: np.ndarray,
        relative: Sim3,
        kernels: Kernels,
        iterations: int,
    ) -> tuple[Sim3, Float[np.ndarray, " q"]]:
        """Take Gauss-Newton steps, each kept where it lowers the cost and shortened where it does not."""
        costs, steps = self._linearize(level, source, target, relative, kernels)
        for _ in range(iterations):
            moved = relative.retract(steps)
            moved_costs, moved_steps = self._linearize(level, source, target, moved, kernels)
            lower = moved_costs < costs
            relative = _where(lower, moved, relative)
            steps = np.where(lower[:, None], moved_steps, 0.4 * steps)
            costs = np.where(lower, moved_costs, costs)
        return relative, costs


def _where(condition: Bool[np.ndarray, " q"], a: Sim3, b: Sim3) -> Sim3:
    """Similarities of `a` where the condition holds, of `b` elsewhere."""
    return Sim3(
        np.where(condition[:, None, None], a.R, b.R),
        np.where(condition[:, None], a.t, b.t),
        np.where(condition, a.s, b.s),
    )

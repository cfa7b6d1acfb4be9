# SPDX-License-Identifier: Apache-2.0
"""Outlier views of pairwise registration: detected by their cost, re-initialized by a search over rotations."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.sim3 import Sim3, angles_deg, rotation_grid, separated
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.pairwise.integrated_depth import PyramidLevel
from pmni_nerfstudio.registration.pairwise.residuals import (
    Kernels,
    PairwiseProblem,
    gauss_newton_steps,
    pair_terms,
)


@dataclass(frozen=True)
class OutlierOptions:
    """Detection and re-initialization of outlier views."""

    cost_ratio: float = 1.5
    """An outlier's cost exceeds the median view's by at least this factor."""
    cost_excess: float = 0.06
    """An outlier's cost exceeds the median view's by at least this much."""
    max_share: float = 0.5
    """Largest fraction of the views that is re-initialized."""
    rotations: int = 1000
    """Rotations spread over SO(3), about 20 degrees from one to the next; those within `max_rotation_deg` are searched."""
    max_rotation_deg: float = 100.0
    """Largest rotation from the initial pose: even rough poses tell front from back, low-resolution normals may not."""
    candidates: int = 3
    """Candidates of the search that are refined."""
    candidate_separation_deg: float = 20.0
    """Smallest angle between two candidates."""
    kernels: Kernels = Kernels(0.4, 0.5, 0.4)
    """Kernels of the search, wide because the grid of rotations is coarse."""
    points: int = 100
    """Points per view in the search."""
    max_step: float = 0.4
    """Largest norm of a Gauss-Newton step of the search (radians and object radii)."""
    max_angle_deg: float = 60.0
    """Largest angle between the viewing directions of views that are compared."""
    max_references: int = 24
    """Largest number of other views that a view is compared with."""
    min_overlap: float = 0.7
    """Overlap below this fraction of the reference views' typical overlap is penalized as disagreement."""
    iterations: int = 12
    """Solver iterations of a candidate's refinement."""
    max_cost_ratio: float = 0.9
    """A new pose is accepted if its cost is below this fraction of the current pose's."""


def find_outliers(
    problem: PairwiseProblem, state: Sim3, options: OutlierOptions = OutlierOptions()
) -> Int[np.ndarray, " k"]:
    """Find views whose cost is far above the median, the worst first.

    An outlier raises the cost of its neighbors, too. Therefore the worst view is removed with all its pairs before the
    next is searched.
    """
    terms, _ = problem.terms(state, derivatives=False)
    n = len(state)
    loss, weight = np.zeros((n, n)), np.zeros((n, n))
    loss[problem.source, problem.target] = terms.loss
    weight[problem.source, problem.target] = terms.weight
    loss, weight = loss + loss.T, weight + weight.T
    remaining = np.ones(n, dtype=bool)
    outliers = []
    while len(outliers) < int(options.max_share * n):
        costs = loss[:, remaining].sum(axis=1) / np.maximum(weight[:, remaining].sum(axis=1), 1e-9)
        median = float(np.median(costs[remaining]))
        worst = int(np.where(remaining, costs, -1).argmax())
        if costs[worst] <= max(options.cost_ratio * median, median + options.cost_excess):
            break
        remaining[worst] = False
        outliers.append(worst)
    return np.array(outliers, dtype=np.int64)


def reinitialize_outliers(
    level: PyramidLevel,
    state: Sim3,
    outliers: Int[np.ndarray, " k"],
    initial_R: Float[np.ndarray, "n 3 3"],
    kernels: Kernels,
    criteria: Criteria,
    options: OutlierOptions = OutlierOptions(),
) -> tuple[Sim3, list[int]]:
    """Search new similarities for outlier views against the other views, one outlier after another.

    Args:
        level: maps and points.
        state: similarities of all views.
        outliers: views to re-initialize.
        initial_R: initial camera-to-world rotations of all views, in any world: the search is centered on them.
        kernels: kernels that decide between candidates.
        criteria: criteria of the solver; `options` sets the iterations.
        options: options of the search.

    Returns:
        The similarities of all views, and the views that moved; the other outliers have their best pose already.
    """
    inliers = np.setdiff1d(np.arange(len(state)), outliers)
    # Rotation from the world of the initial poses to the current world.
    relative = state.R[inliers] @ np.swapaxes(initial_R[inliers], 1, 2)
    initial_R = Rotation.from_matrix(relative).mean().as_matrix() @ initial_R
    moved = []
    for view in outliers:
        # Other outliers serve as references, too: a neighbor's high cost may be the fault of this view.
        others = np.delete(np.arange(len(state)), view)
        references = others[:: max(1, -(-len(others) // options.max_references))]
        updated = _reinitialize(level, state, int(view), initial_R[view], references, kernels, criteria, options)
        if updated is not None:
            state = updated
            moved.append(int(view))
    return state, moved


def _reinitialize(
    level: PyramidLevel,
    state: Sim3,
    view: int,
    initial_R: Float[np.ndarray, "3 3"],
    references: Int[np.ndarray, " r"],
    kernels: Kernels,
    criteria: Criteria,
    options: OutlierOptions,
) -> Sim3 | None:
    """Similarities of all views with the best one found for this view; None if its current one is best."""
    current = state[[view]]
    comparison = _ReferenceComparison(level, state, view, references, options)
    search = _ReferenceComparison(level.thinned(options.points), state, view, references, options)
    criteria = replace(criteria, max_iterations=options.iterations)
    best = None
    for candidate in _search_rotations(search, initial_R, current.s[0]):
        refined = comparison.refine(candidate, kernels, criteria)
        cost = comparison.cost(refined, kernels)[0]
        if best is None or cost < best[0]:
            best = cost, refined
    refined = comparison.refine(current, kernels, criteria)
    if best is None or best[0] > options.max_cost_ratio * comparison.cost(refined, kernels)[0]:
        return None
    return state.replaced(view, best[1])


def _search_rotations(comparison: _ReferenceComparison, initial_R: np.ndarray, scale: float) -> list[Sim3]:
    """Candidate similarities of a view from a grid of rotations about its initial one.

    Every rotation gets a few Gauss-Newton steps before it is judged, since the view's estimate of the object's center
    may be off by a third of the object; the number of candidates shrinks from step to step.
    """
    o = comparison.options
    rotations = rotation_grid(o.rotations)
    rotations = rotations[angles_deg(rotations, np.eye(3)) < o.max_rotation_deg]
    count = len(rotations)
    center = np.median(comparison.state.t[comparison.references], axis=0)
    candidates = Sim3(rotations @ initial_R, np.tile(center, (count, 1)), np.full(count, scale))
    for keep in (count, count // 2, count // 3, count // 5):
        costs, steps = comparison.gauss_newton_steps(candidates, o.kernels)
        best = np.argsort(costs, kind="stable")[: max(keep, o.candidates)]
        candidates = candidates[best].retract(steps[best])
    costs = comparison.cost(candidates, o.kernels)
    chosen = separated(candidates.R, costs, o.candidate_separation_deg, o.candidates)
    return [candidates[[k]] for k in chosen]


class _ReferenceComparison:
    """Comparison of candidate similarities of one view with fixed reference views.

    Args:
        level: maps and points.
        state: similarities of all views.
        view: view whose candidates are compared.
        references: views it is compared with.
        options: options of the search.
    """

    def __init__(
        self, level: PyramidLevel, state: Sim3, view: int, references: Int[np.ndarray, " r"], options: OutlierOptions
    ) -> None:
        self.level, self.state, self.view, self.references, self.options = level, state, view, references, options
        self._typical_weight: dict[Kernels, float] = {}

    def cost(self, candidates: Sim3, kernels: Kernels) -> Float[np.ndarray, " c"]:
        """Cost of each candidate over pairs in both directions, with a penalty on missing overlap."""
        if kernels not in self._typical_weight:
            weights = [
                self._sums(self.state[[r]], int(r), self.references[self.references != r], kernels)[1][0]
                for r in self.references
            ]
            self._typical_weight[kernels] = max(float(np.median(weights)), 1e-6)
        loss, weight = self._sums(candidates, self.view, self.references, kernels)
        missing = np.maximum(self.options.min_overlap * self._typical_weight[kernels] - weight, 0)
        return (loss + missing) / (weight + missing)

    def gauss_newton_steps(
        self, candidates: Sim3, kernels: Kernels
    ) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, "c 7"]]:
        """Cost and damped Gauss-Newton step of each candidate, over the pairs from the view to the references only."""
        which, others, relative = self._overlapping(candidates, self.references)
        source = np.full(len(which), self.view)
        terms = pair_terms(self.level, source, others, relative, kernels)
        assert terms.hessian is not None and terms.gradient is not None
        chain = relative.adjoint()
        loss, weight = np.zeros(len(candidates)), np.zeros(len(candidates))
        hessian, gradient = np.zeros((len(candidates), 7, 7)), np.zeros((len(candidates), 7))
        np.add.at(loss, which, terms.loss)
        np.add.at(weight, which, terms.weight)
        np.add.at(hessian, which, np.swapaxes(chain, 1, 2) @ terms.hessian @ chain)
        np.add.at(gradient, which, np.einsum("qab,qa->qb", chain, terms.gradient))
        missing = np.maximum(0.3 * weight.max(initial=1e-6) - weight, 0)
        steps = gauss_newton_steps(hessian, gradient, self.options.max_step)
        return (loss + missing) / (weight + missing), steps

    def refine(self, candidate: Sim3, kernels: Kernels, criteria: Criteria) -> Sim3:
        """Optimize a candidate over pairs with the references near it, in both directions."""
        cosine = self.state.R[self.references, :, 2] @ candidate.R[0, :, 2]
        near = self.references[cosine > np.cos(np.radians(self.options.max_angle_deg))]
        if len(near) < 2:
            near = self.references[np.argsort(-cosine, kind="stable")[:3]]
        view = np.full(len(near), self.view)
        pairs = np.concatenate([np.stack([view, near], axis=1), np.stack([near, view], axis=1)])
        problem = PairwiseProblem(self.level, pairs, kernels, free=[self.view])
        return solve(problem, self.state.replaced(self.view, candidate), criteria).state[[self.view]]

    def _overlapping(
        self, candidates: Sim3, references: Int[np.ndarray, " r"]
    ) -> tuple[Int[np.ndarray, " q"], Int[np.ndarray, " q"], Sim3]:
        """Pairs of a candidate and a reference that look in similar directions.

        Returns:
            Indices of the candidates, the reference views, and the similarities from candidates to references.
        """
        cosine = candidates.R[:, :, 2] @ self.state.R[references, :, 2].T
        which, reference = np.nonzero(cosine > np.cos(np.radians(self.options.max_angle_deg)))
        others = references[reference]
        return which, others, self.state[others].inverse().compose(candidates[which])

    def _sums(
        self, candidates: Sim3, view: int, references: Int[np.ndarray, " r"], kernels: Kernels
    ) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
        """Loss and weight of each candidate of a view, summed over pairs with the references in both directions."""
        which, others, relative = self._overlapping(candidates, references)
        views = np.full(len(which), view)
        loss, weight = np.zeros(len(candidates)), np.zeros(len(candidates))
        if len(which):
            for source, target, similarity in ((views, others, relative), (others, views, relative.inverse())):
                terms = pair_terms(self.level, source, target, similarity, kernels, derivatives=False)
                np.add.at(loss, which, terms.loss)
                np.add.at(weight, which, terms.weight)
        return loss, weight

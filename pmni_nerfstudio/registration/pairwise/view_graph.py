# SPDX-License-Identifier: Apache-2.0
"""View graph: poses of unordered views from hypotheses of their relative poses.

Views are placed one after another, as in incremental structure from motion.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from pmni_nerfstudio.geometry.sim3 import Sim3, angles_deg
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.pairwise.appearance import appearance_distances
from pmni_nerfstudio.registration.pairwise.group_moves import group_moves
from pmni_nerfstudio.registration.pairwise.integrated_depth import PyramidLevel
from pmni_nerfstudio.registration.pairwise.pair_selection import choose_pairs
from pmni_nerfstudio.registration.pairwise.relative_pose import PairHypotheses, RelativePoseOptions, RelativePoseSearch
from pmni_nerfstudio.registration.pairwise.residuals import PairwiseProblem


@dataclass(frozen=True)
class ViewGraphOptions:
    """Options of the incremental placement."""

    relative_pose: RelativePoseOptions = field(default_factory=RelativePoseOptions)
    starts: int = 2
    """Number of pairs of views that the placement starts from."""
    full_weight_deg: float = 25.0
    """Angle between viewing directions up to which the comparison with a placed view has full weight."""
    max_angle_deg: float = 65.0
    """Angle at which its weight is zero."""
    few_comparisons: tuple[float, ...] = (0.1, 0.03)
    """Additional cost of a candidate that is compared with one placed view only, inversely proportional to their number;
    every start is placed once with each."""
    joint_sizes: tuple[int, ...] = (4, 7, 11, 16, 24)
    """Numbers of placed views at which all of them are optimized together."""
    joint: Criteria = Criteria(15, 1e-2, 1e-4, 2e-4)
    group_moves: int = 4
    """Largest number of groups of views that are moved in one arrangement."""
    consistency_weight: float = 0.5
    """Weight of the hypotheses that an arrangement contradicts, beside its pairwise cost."""
    consistency_quantile: float = 0.5
    """Quantile of the pairs' lowest costs below which a hypothesis counts: most pairs see no common surface, and their
    hypotheses are accidental."""
    consistency_deg: float = 25.0
    """Largest angle between a relative pose and a hypothesis that it agrees with."""


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Similarities of all views, and how well they fit."""

    state: Sim3
    pairwise_cost: float
    """Cost of the pairs of neighboring views, 0 to 1."""
    consistency: float
    """Agreement with the hypotheses of all pairs, 0 to 1; see `ViewGraph.consistency`."""
    score: float
    """Combination of both; lower is better."""


class ViewGraph:
    """Hypotheses of the relative poses of pairs of views, and the placement of all views from them.

    Args:
        level: maps and points.
        options: options of search and placement.
    """

    def __init__(self, level: PyramidLevel, options: ViewGraphOptions = ViewGraphOptions()) -> None:
        self.level, self.options = level, options
        self.search = RelativePoseSearch(level, options.relative_pose)
        self.num_views = len(level.points)
        self.hypotheses: dict[tuple[int, int], PairHypotheses] = {}

    @cached_property
    def appearance(self) -> Float[np.ndarray, "n n"]:
        """Differences in appearance between all pairs of views; see `appearance_distances`."""
        return appearance_distances(self.level)

    def search_pairs(self, pairs: Int[np.ndarray, "q 2"], on_progress: Callable[[float], None] | None = None) -> None:
        """Search the hypotheses of pairs that have none yet."""
        new = np.array([pair for pair in pairs.tolist() if tuple(pair) not in self.hypotheses]).reshape(-1, 2)
        for (i, j), found in zip(new.tolist(), self.search.search_pairs(new, on_progress)):
            self.hypotheses[i, j], self.hypotheses[j, i] = found, found.inverse()

    def search_all_pairs(self, on_progress: Callable[[float], None] | None = None) -> None:
        """Search the hypotheses of all pairs."""
        self.search_pairs(np.argwhere(np.triu(np.ones((self.num_views, self.num_views), bool), 1)), on_progress)

    def subgraph(self, views: Int[np.ndarray, " m"]) -> ViewGraph:
        """The graph of some views, numbered in their order, with the hypotheses that are known already."""
        graph = ViewGraph(self.level.subset(views), self.options)
        number = {view: k for k, view in enumerate(views.tolist())}
        graph.hypotheses = {
            (number[i], number[j]): found for (i, j), found in self.hypotheses.items() if i in number and j in number
        }
        return graph

    def confirmed_fraction(self, R: Float[np.ndarray, "n 3 3"], neighbors: int = 2) -> float:
        """Fraction of the pairs of neighboring views whose best hypothesis agrees with given poses.

        Only these pairs are searched, which is far cheaper than an arrangement from nothing: near views have a reliable
        relative pose, so that wrong poses contradict it.

        Args:
            R: camera-to-world rotations.
            neighbors: number of nearest views that each view is compared with.
        """
        cosine = R[:, :, 2] @ R[:, :, 2].T
        np.fill_diagonal(cosine, -2)
        nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :neighbors]
        pairs = np.unique(
            np.sort(np.stack([np.repeat(np.arange(len(R)), neighbors), nearest.ravel()], 1), axis=1), axis=0
        )
        self.search_pairs(pairs)
        return float(np.mean([self._agreeing_cost(R, i, j, count=1) is not None for i, j in pairs.tolist()]))

    def consistency(self, R: Float[np.ndarray, "n 3 3"]) -> float:
        """Weighted fraction of the good hypotheses that camera-to-world rotations agree with.

        Each pair weighs as much as its lowest cost is below a quantile of all pairs' lowest costs.
        """
        pairs = [(i, j) for i, j in self.hypotheses if i < j]
        lowest = np.array([self.hypotheses[pair].costs[0] for pair in pairs])
        limit = float(np.quantile(lowest, self.options.consistency_quantile))
        agreeing = [self._agreeing_cost(R, i, j) for i, j in pairs]
        gained = sum(max(0.0, limit - cost) for cost in agreeing if cost is not None)
        return gained / max(float(np.maximum(limit - lowest, 0).sum()), 1e-9)

    def _agreeing_cost(self, R: Float[np.ndarray, "n 3 3"], i: int, j: int, count: int | None = None) -> float | None:
        """Lowest cost of the first hypotheses of a pair that agree with the rotations; None if none does."""
        found = self.hypotheses[i, j]
        near = angles_deg(found.relative.R, (R[j].T @ R[i])[None]) < self.options.consistency_deg
        costs = found.costs[:count][near[:count]]
        return float(costs.min()) if len(costs) else None

    def evaluate(self, state: Sim3) -> Arrangement:
        """Evaluate similarities of all views."""
        terms, _ = PairwiseProblem(self.level, self._pairs(state.R), self.options.relative_pose.kernels).terms(
            state, derivatives=False
        )
        cost = float(terms.loss.sum() / max(float(terms.weight.sum()), 1e-9))
        consistency = self.consistency(state.R)
        return Arrangement(state, cost, consistency, cost + self.options.consistency_weight * (1 - consistency))

    def arrangements(self, on_progress: Callable[[float], None] | None = None) -> list[Arrangement]:
        """Different arrangements of all views, the best first."""
        attempts = [(start, few) for start in self._start_pairs() for few in self.options.few_comparisons]
        found: list[Arrangement] = []
        with ThreadPoolExecutor(max_workers=2) as pool:
            for arrangement in pool.map(lambda attempt: self._improved(self.place(*attempt)), attempts):
                found.append(arrangement)
                if on_progress is not None:
                    on_progress(len(found) / len(attempts))
        found.sort(key=lambda arrangement: arrangement.score)
        different: list[Arrangement] = []
        for arrangement in found:
            if all(_differ(arrangement.state, other.state) for other in different):
                different.append(arrangement)
        return different

    def _improved(self, state: Sim3) -> Arrangement:
        """Optimize an arrangement, and move groups of views as long as the score falls."""
        everything = np.arange(self.num_views)
        best = self.evaluate(self._optimize(state, everything))
        for _ in range(self.options.group_moves):
            moved = sorted((self.evaluate(s) for s in group_moves(self.hypotheses, best.state)), key=lambda a: a.score)
            for candidate in moved[:3]:
                optimized = self.evaluate(self._optimize(candidate.state, everything))
                if optimized.score < best.score - 1e-3:
                    best = optimized
                    break
            else:
                break
        return best

    def _pairs(self, R: Float[np.ndarray, "n 3 3"]) -> Int[np.ndarray, "q 2"]:
        return choose_pairs(R, self.options.relative_pose.max_angle_deg, max_neighbors=10, min_neighbors=4)

    def _start_pairs(self) -> list[tuple[int, int]]:
        """Disjoint pairs of lowest cost, from which placements start."""
        pairs = [(i, j) for i, j in self.hypotheses if i < j]
        pairs.sort(key=lambda pair: float(self.hypotheses[pair].costs[0]))
        chosen: list[tuple[int, int]] = []
        for pair in pairs:
            if not any(set(pair) & set(other) for other in chosen):
                chosen.append(pair)
            if len(chosen) == self.options.starts:
                break
        return chosen

    def place(self, start: tuple[int, int], few_comparisons: float) -> Sim3:
        """Place all views one after another, beginning with a pair.

        The view with the best candidate is placed next. A candidate is a placed view's pose composed with a hypothesis of
        their relative pose; it is compared with all placed views that look in similar directions.

        Args:
            start: first two views.
            few_comparisons: additional cost of candidates that are compared with few placed views.
        """
        n = self.num_views
        state = Sim3(np.tile(np.eye(3), (n, 1, 1)), np.zeros((n, 3)), np.ones(n))
        first, second = start
        state = state.replaced(first, self.hypotheses[first, second].relative[[0]])
        placed = [second, first]
        candidates = _Candidates(self, few_comparisons)
        for view in placed:
            candidates.add(state, placed, view)
        while len(placed) < n:
            view, similarity = candidates.best()
            state = state.replaced(view, similarity)
            placed.append(view)
            if len(placed) in self.options.joint_sizes:
                state = self._optimize(state, np.sort(placed))
                candidates = _Candidates(self, few_comparisons)
                for other in placed:
                    candidates.add(state, placed, other)
            else:
                candidates.remove([view])
                candidates.propose(state, placed, view)
        return state

    def extended(self, state: Sim3, placed: Int[np.ndarray, " p"]) -> Sim3:
        """Place all other views beside those that are placed, each by its best candidate.

        Every other view needs hypotheses with some placed views.

        Args:
            state: similarities of the placed views.
            placed: their indices.
        """
        n = self.num_views
        everything = Sim3(np.tile(np.eye(3), (n, 1, 1)), np.zeros((n, 3)), np.ones(n)).replaced(placed, state)
        candidates = _Candidates(self, self.options.few_comparisons[0])
        for view in placed.tolist():
            candidates.add(everything, placed.tolist(), view)
        while len(candidates.views):
            view, similarity = candidates.best()
            everything = everything.replaced(view, similarity)
            candidates.remove([view])
        return everything

    def _optimize(self, state: Sim3, placed: Int[np.ndarray, " p"]) -> Sim3:
        """Optimize the placed views together."""
        pairs = placed[self._pairs(state.R[placed])]
        problem = PairwiseProblem(self.level, pairs, self.options.relative_pose.kernels, free=placed.tolist())
        return solve(problem, state, self.options.joint).state


class _Candidates:
    """Candidate poses of views that are not placed yet, compared with the placed views."""

    def __init__(self, graph: ViewGraph, few_comparisons: float) -> None:
        self.graph, self.few_comparisons = graph, few_comparisons
        self.views = np.zeros(0, int)
        self.similarities = Sim3(np.zeros((0, 3, 3)), np.zeros((0, 3)), np.zeros(0))
        self.cost_sum, self.weight_sum = np.zeros(0), np.zeros(0)

    def propose(self, state: Sim3, placed: list[int], source: int) -> None:
        """Compare the candidates with a view that was placed now, and add those that it implies."""
        self._compare(np.arange(len(self.views)), state, np.array([source]))
        self.add(state, placed, source)

    def add(self, state: Sim3, placed: list[int], source: int) -> None:
        """Add the candidates that one of the placed views implies, and compare them with all placed views."""
        hypotheses = self.graph.hypotheses
        unplaced = [v for v in range(self.graph.num_views) if (v, source) in hypotheses and v not in placed]
        if not unplaced:
            return
        found = [hypotheses[view, source].relative for view in unplaced]
        relative = _concatenate(found)
        count = len(relative)
        first = len(self.views)
        self.views = np.concatenate([self.views, np.repeat(unplaced, [len(r) for r in found])])
        self.similarities = _concatenate([self.similarities, state[np.full(count, source)].compose(relative)])
        self.cost_sum = np.concatenate([self.cost_sum, np.zeros(count)])
        self.weight_sum = np.concatenate([self.weight_sum, np.zeros(count)])
        self._compare(np.arange(first, first + count), state, np.array(placed))

    def _compare(self, which: Int[np.ndarray, " c"], state: Sim3, placed: Int[np.ndarray, " p"]) -> None:
        """Add the costs of candidates against placed views."""
        o = self.graph.options
        cosine = self.similarities.R[which][:, :, 2] @ state.R[placed][:, :, 2].T
        angle = np.degrees(np.arccos(cosine.clip(-1, 1)))
        weight = ((o.max_angle_deg - angle) / (o.max_angle_deg - o.full_weight_deg)).clip(0, 1)
        c, p = np.nonzero(weight > 0)
        if not len(c):
            return
        relative = state[placed[p]].inverse().compose(self.similarities[which[c]])
        cost = self.graph.search.cost(self.views[which[c]], placed[p], relative)
        np.add.at(self.cost_sum, which[c], weight[c, p] * cost)
        np.add.at(self.weight_sum, which[c], weight[c, p])

    def scores(self) -> Float[np.ndarray, " c"]:
        """Mean cost of each candidate, increased where few placed views were compared."""
        weight = np.maximum(self.weight_sum, 1e-3)
        return (self.cost_sum + self.few_comparisons) / weight

    def best(self) -> tuple[int, Sim3]:
        """The best candidate: its view and similarity."""
        k = int(self.scores().argmin())
        return int(self.views[k]), self.similarities[[k]]

    def remove(self, views: list[int]) -> None:
        """Remove all candidates of views that are placed now."""
        kept = ~np.isin(self.views, views)
        self.views, self.similarities = self.views[kept], self.similarities[kept]
        self.cost_sum, self.weight_sum = self.cost_sum[kept], self.weight_sum[kept]


def _concatenate(parts: list[Sim3]) -> Sim3:
    return Sim3(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("R", "t", "s")))


def _differ(a: Sim3, b: Sim3) -> bool:
    """Whether the relative rotations of two arrangements differ for a tenth of the views, whatever their worlds."""
    relative = a.R @ np.swapaxes(b.R, 1, 2)
    best = max(int((angles_deg(relative, relative[[k]]) < 25).sum()) for k in range(len(relative)))
    return best < 0.9 * len(relative)

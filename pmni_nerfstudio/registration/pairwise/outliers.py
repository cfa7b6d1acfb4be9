# SPDX-License-Identifier: Apache-2.0
"""Views that are stuck where they don't belong: found by their cost, and tried again from rotations all round."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from pmni_nerfstudio.geometry.sim3 import Similarities, angles_deg, rotation_grid
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.pairwise.integrated_depth import ReliefLevel
from pmni_nerfstudio.registration.pairwise.residuals import Kernels, PairwiseProblem, pair_terms


@dataclass(frozen=True)
class StuckOptions:
    """When a view is tried again, and how hard."""

    cost_ratio: float = 1.5
    """Of a view's cost to the median view's."""
    cost_excess: float = 0.06
    """Of a view's cost over the median view's."""
    largest_share: float = 0.5
    """Of the views: no more are tried again, the worst first."""
    rotations: int = 1000
    """Over all there are, about 20 degrees from one to the next, of which those within reach are tried."""
    reach_deg: float = 100.0
    """From where the view began: front from back, rough poses know better than normals at low resolution."""
    finalists: int = 3
    """Starts that are refined in full."""
    finalists_apart_deg: float = 20.0
    """One start from the next."""
    kernels: Kernels = Kernels(0.4, 0.5, 0.4)
    """Of the search: wide, as the starts are far apart."""
    points: int = 100
    """Of the search, a view."""
    longest_step: float = 0.4
    """Of the search, radians and object radii together."""
    angle_deg: float = 60.0
    """Between the axes of views that are compared."""
    witnesses: int = 24
    """At most so many other views are asked."""
    overlap: float = 0.7
    """Of what views usually see of each other: what a new place lacks of it counts against it."""
    iterations: int = 12
    gain: float = 0.9
    """A new place must have at most this part of the old one's cost."""


def stuck_views(
    problem: PairwiseProblem, state: Similarities, options: StuckOptions = StuckOptions()
) -> Int[np.ndarray, " k"]:
    """Views whose cost stands out, the worst first.

    A stuck view spoils the cost of its neighbours, too. So the worst view is set aside with all its pairs before the
    next is looked for.
    """
    terms, _ = problem.terms(state, derivatives=False)
    n = len(state)
    loss, weight = np.zeros((n, n)), np.zeros((n, n))
    loss[problem.source, problem.target] = terms.loss
    weight[problem.source, problem.target] = terms.weight
    loss, weight = loss + loss.T, weight + weight.T
    left = np.ones(n, dtype=bool)
    found = []
    while len(found) < int(options.largest_share * n):
        costs = loss[:, left].sum(axis=1) / np.maximum(weight[:, left].sum(axis=1), 1e-9)
        median = float(np.median(costs[left]))
        worst = int(np.where(left, costs, -1).argmax())
        if costs[worst] <= max(options.cost_ratio * median, median + options.cost_excess):
            break
        left[worst] = False
        found.append(worst)
    return np.array(found, dtype=np.int64)


def try_again(
    level: ReliefLevel,
    state: Similarities,
    stuck: Int[np.ndarray, " k"],
    began: Float[np.ndarray, "n 3 3"],
    kernels: Kernels,
    criteria: Criteria,
    options: StuckOptions = StuckOptions(),
) -> tuple[Similarities, list[int]]:
    """Place views against the others, one by one; each that is placed helps with the next.

    Args:
        level: the reliefs.
        state: of all views.
        stuck: the views to place.
        began: orientations of all views at the start of it all, their world turned in any way.
        kernels: widths and weights.
        criteria: of the solver, less its iterations.
        options: how hard to try.

    Returns:
        the views' similarities, and the views that have moved: the others are best where they are.
    """
    believed = np.setdiff1d(np.arange(len(state)), stuck)
    # The world may have turned since.
    u, _, vt = np.linalg.svd((state.R[believed] @ np.swapaxes(began[believed], 1, 2)).sum(axis=0))
    began = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt @ began
    moved = []
    for view in stuck:
        # All others are asked, even those that stand out: a neighbour's cost may be this view's fault.
        others = np.delete(np.arange(len(state)), view)
        witnesses = others[:: max(1, -(-len(others) // options.witnesses))]
        placed = _place(level, state, int(view), began[view], witnesses, kernels, criteria, options)
        if placed is not None:
            state = placed
            moved.append(int(view))
    return state, moved


def _place(
    level: ReliefLevel,
    state: Similarities,
    view: int,
    began: np.ndarray,
    witnesses: np.ndarray,
    kernels: Kernels,
    criteria: Criteria,
    options: StuckOptions,
) -> Similarities | None:
    """All similarities with this view's best; None if it is best where it is."""
    own = state[[view]]
    court = _Court(level, state, view, witnesses, options)
    few = options.points  # they are in random order
    thinned = replace(
        level, points=level.points[:, :few], normals=level.normals[:, :few], weights=level.weights[:, :few]
    )
    in_full = replace(criteria, max_iterations=options.iterations)
    best = None
    for start in _starts(_Court(thinned, state, view, witnesses, options), began, own.s[0]):
        refined = court.refine(start, kernels, in_full)
        cost = court.cost(refined, kernels)[0]
        if best is None or cost < best[0]:
            best = cost, refined
    stays = court.refine(own, kernels, in_full)
    if best is None or best[0] > options.gain * court.cost(stays, kernels)[0]:
        return None
    return state.replaced(view, best[1])


def _starts(court: _Court, began: np.ndarray, scale: float) -> list[Similarities]:
    """A few places that may be the view's.

    At each rotation tried, the view is moved for a step or two before it is judged: its own idea of where the object's
    middle is may be off by a third of the object.
    """
    o = court.options
    turns = rotation_grid(o.rotations)
    turns = turns[angles_deg(turns, np.eye(3)) < o.reach_deg]
    count = len(turns)
    middle = np.median(court.state.t[court.witnesses], axis=0)
    candidates = Similarities(turns @ began, np.tile(middle, (count, 1)), np.full(count, scale))
    for keep in (count, count // 2, count // 3, count // 5):
        costs, steps = court.steps(candidates, o.kernels)
        best = np.argsort(costs, kind="stable")[: max(keep, o.finalists)]
        candidates = candidates[best].retract(steps[best])
    costs = court.cost(candidates, o.kernels)
    chosen: list[int] = []
    for k in np.argsort(costs, kind="stable"):
        if all(angles_deg(candidates.R[[k]], candidates.R[[c]])[0] > o.finalists_apart_deg for c in chosen):
            chosen.append(int(k))
        if len(chosen) == o.finalists:
            break
    return [candidates[[k]] for k in chosen]


class _Court:
    """Judges places of one view by what the others, the witnesses, see there."""

    def __init__(
        self, level: ReliefLevel, state: Similarities, view: int, witnesses: np.ndarray, options: StuckOptions
    ) -> None:
        self.level, self.state, self.view, self.witnesses, self.options = level, state, view, witnesses, options
        self._overlap: dict[Kernels, float] = {}

    def cost(self, candidates: Similarities, kernels: Kernels) -> Float[np.ndarray, " c"]:
        """Of both ways; what a candidate lacks of the usual overlap counts as disagreement."""
        if kernels not in self._overlap:
            usual = [
                self._sums(self.state[[w]], int(w), self.witnesses[self.witnesses != w], kernels)[1][0]
                for w in self.witnesses
            ]
            self._overlap[kernels] = max(float(np.median(usual)), 1e-6)
        loss, weight = self._sums(candidates, self.view, self.witnesses, kernels)
        lacking = np.maximum(self.options.overlap * self._overlap[kernels] - weight, 0)
        return (loss + lacking) / (weight + lacking)

    def steps(
        self, candidates: Similarities, kernels: Kernels
    ) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, "c 7"]]:
        """Costs of the view's points on the witnesses, and a damped Gauss-Newton step of every candidate."""
        which, others, relative = self._near(candidates, self.witnesses)
        here = np.full(len(which), self.view)
        terms = pair_terms(self.level, here, others, relative, kernels)
        assert terms.hessian is not None and terms.gradient is not None
        chain = relative.adjoint()
        loss, weight = np.zeros(len(candidates)), np.zeros(len(candidates))
        hessian, gradient = np.zeros((len(candidates), 7, 7)), np.zeros((len(candidates), 7))
        np.add.at(loss, which, terms.loss)
        np.add.at(weight, which, terms.weight)
        np.add.at(hessian, which, np.swapaxes(chain, 1, 2) @ terms.hessian @ chain)
        np.add.at(gradient, which, np.einsum("qab,qa->qb", chain, terms.gradient))
        size = np.einsum("cii->c", hessian) / 7
        damped = hessian + (0.01 * size + 1e-6)[:, None, None] * np.eye(7)
        step = -np.linalg.solve(damped, gradient[..., None])[..., 0]
        step *= np.minimum(1, self.options.longest_step / np.maximum(np.linalg.norm(step, axis=1), 1e-9))[:, None]
        most = weight.max(initial=1e-6)
        lacking = np.maximum(0.3 * most - weight, 0)
        return (loss + lacking) / (weight + lacking), step

    def refine(self, start: Similarities, kernels: Kernels, criteria: Criteria) -> Similarities:
        """The view alone, from a start, against the witnesses near it, both ways."""
        cosine = self.state.R[self.witnesses, :, 2] @ start.R[0, :, 2]
        near = self.witnesses[cosine > np.cos(np.radians(self.options.angle_deg))]
        if len(near) < 2:
            near = self.witnesses[np.argsort(-cosine, kind="stable")[:3]]
        here = np.full(len(near), self.view)
        pairs = np.concatenate([np.stack([here, near], axis=1), np.stack([near, here], axis=1)])
        problem = PairwiseProblem(self.level, pairs, kernels, free=[self.view])
        return solve(problem, self.state.replaced(self.view, start), criteria).state[[self.view]]

    def _near(self, candidates: Similarities, witnesses: np.ndarray) -> tuple[np.ndarray, np.ndarray, Similarities]:
        """Of all pairs of a candidate and a witness near it: which candidate, the witness, and the way to it."""
        cosine = candidates.R[:, :, 2] @ self.state.R[witnesses, :, 2].T
        which, witness = np.nonzero(cosine > np.cos(np.radians(self.options.angle_deg)))
        others = witnesses[witness]
        return which, others, self.state[others].inverse().compose(candidates[which])

    def _sums(
        self, candidates: Similarities, view: int, witnesses: np.ndarray, kernels: Kernels
    ) -> tuple[np.ndarray, np.ndarray]:
        """Loss and weight of a view's points on the witnesses near each candidate, and of theirs on the view."""
        which, others, relative = self._near(candidates, witnesses)
        here = np.full(len(which), view)
        loss, weight = np.zeros(len(candidates)), np.zeros(len(candidates))
        if len(which):
            for source, target, way in ((here, others, relative), (others, here, relative.inverse())):
                terms = pair_terms(self.level, source, target, way, kernels, derivatives=False)
                np.add.at(loss, which, terms.loss)
                np.add.at(weight, which, terms.weight)
        return loss, weight

# SPDX-License-Identifier: Apache-2.0
"""Views that are stuck where they don't belong: found by their cost, and tried again from rotations all round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from pmni_nerfstudio.registration.pair_residuals import Kernels, PairwiseProblem, pair_terms
from pmni_nerfstudio.registration.relief import ReliefLevel
from pmni_nerfstudio.registration.similarity import Similarities, angles_deg, rotation_grid
from pmni_nerfstudio.registration.solver import Criteria, solve


@dataclass(frozen=True)
class StuckOptions:
    """When a view is tried again, and how hard."""

    cost_ratio: float = 1.4
    """Of a view's cost to the median view's."""
    cost_excess: float = 0.08
    """Of a view's cost over the median view's."""
    largest_share: float = 0.5
    """Of the views: no more are tried again, the worst first."""
    rotations: int = 1000
    """Over all there are, about 20 degrees from one to the next, of which those within reach are tried."""
    reach_deg: float = 90.0
    """From where the view is: what is front and what is back, rough poses know better than normals at low resolution."""
    finalists: int = 6
    """Starts that are refined."""
    finalists_apart_deg: float = 20.0
    angle_deg: float = 60.0
    """Between the axes of views that are compared."""
    witnesses: int = 24
    """At most so many other views are asked."""
    overlap: float = 0.7
    """Of what views usually see of each other: what a new place lacks of it counts against it."""
    iterations: int = 12
    gain: float = 0.9
    """A new place must have at most this part of the old one's cost."""


def stuck_views(costs: Float[np.ndarray, " n"], options: StuckOptions = StuckOptions()) -> Int[np.ndarray, " k"]:
    """Views whose cost stands out, the worst first."""
    median = float(np.median(costs))
    order = np.argsort(-costs, kind="stable")
    stands_out = (costs > options.cost_ratio * median) & (costs > median + options.cost_excess)
    return order[stands_out[order]][: int(options.largest_share * len(costs))]


def try_again(
    level: ReliefLevel,
    state: Similarities,
    stuck: Int[np.ndarray, " k"],
    kernels: Kernels,
    criteria: Criteria,
    options: StuckOptions = StuckOptions(),
) -> tuple[Similarities, list[int]]:
    """Place views against the others, one by one; each that is placed helps with the next.

    Returns:
        the views' similarities, and the views that have moved.
    """
    believed = np.setdiff1d(np.arange(len(state)), stuck)
    moved = []
    for view in stuck:
        witnesses = believed[:: max(1, -(-len(believed) // options.witnesses))]
        placed = _place(level, state, int(view), witnesses, kernels, criteria, options)
        if placed is not None:
            state = placed
            moved.append(int(view))
            believed = np.append(believed, view)
    return state, moved


def _place(
    level: ReliefLevel,
    state: Similarities,
    view: int,
    witnesses: np.ndarray,
    kernels: Kernels,
    criteria: Criteria,
    options: StuckOptions,
) -> Similarities | None:
    """All similarities with this view's best; None if it is best where it is."""
    own = state[[view]]
    refined = [_refine(level, state, own, view, witnesses, kernels, criteria, options)]
    overlap = {back: _usual_overlap(level, state, witnesses, kernels, options, back) for back in (False, True)}

    def cost(candidates: Similarities, back: bool) -> np.ndarray:
        """What a candidate lacks of the usual overlap counts as disagreement."""
        loss, weight = _sums(level, state, candidates, view, witnesses, kernels, options, back)
        lacking = np.maximum(options.overlap * overlap[back] - weight, 0)
        return (loss + lacking) / (weight + lacking)

    turns = rotation_grid(options.rotations)
    turns = turns[angles_deg(turns, np.eye(3)) < options.reach_deg]
    rotations = turns @ own.R
    count = len(rotations)
    middle = np.median(state.t[witnesses], axis=0)
    starts = Similarities(rotations, np.tile(middle, (count, 1)), np.repeat(own.s, count))
    costs = cost(starts, back=False)
    chosen: list[int] = []
    for k in np.argsort(costs, kind="stable"):
        if all(angles_deg(rotations[[k]], rotations[[c]])[0] > options.finalists_apart_deg for c in chosen):
            chosen.append(int(k))
            if len(chosen) == options.finalists:
                break
    refined += [_refine(level, state, starts[[k]], view, witnesses, kernels, criteria, options) for k in chosen]
    final = np.array([cost(r, back=True)[0] for r in refined])
    best = int(final.argmin())
    if best == 0 or final[best] > options.gain * final[0]:
        return None
    return state.replaced(view, refined[best])


def _refine(
    level: ReliefLevel,
    state: Similarities,
    start: Similarities,
    view: int,
    witnesses: np.ndarray,
    kernels: Kernels,
    criteria: Criteria,
    options: StuckOptions,
) -> Similarities:
    """One view alone, from a start, against the witnesses near it."""
    for _ in range(2):  # the views near it change as it turns
        cosine = state.R[witnesses, :, 2] @ start.R[0, :, 2]
        near = witnesses[cosine > np.cos(np.radians(options.angle_deg))]
        if len(near) < 2:
            near = witnesses[np.argsort(-cosine, kind="stable")[:3]]
        here = np.full(len(near), view)
        pairs = np.concatenate([np.stack([here, near], axis=1), np.stack([near, here], axis=1)])
        problem = PairwiseProblem(level, pairs, kernels, free=[view])
        start = solve(problem, state.replaced(view, start), criteria).state[[view]]
    return start


def _usual_overlap(
    level: ReliefLevel, state: Similarities, witnesses: np.ndarray, kernels: Kernels, options: StuckOptions, back: bool
) -> float:
    weights = [
        _sums(level, state, state[[w]], int(w), witnesses[witnesses != w], kernels, options, back)[1][0]
        for w in witnesses
    ]
    return max(float(np.median(weights)), 1e-6)


def _sums(
    level: ReliefLevel,
    state: Similarities,
    candidates: Similarities,
    view: int,
    witnesses: np.ndarray,
    kernels: Kernels,
    options: StuckOptions,
    back: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Loss and weight of a view's points laid from each candidate's place onto the witnesses near that; with `back`,
    of the witnesses' points laid onto the view, too."""
    cosine = candidates.R[:, :, 2] @ state.R[witnesses, :, 2].T
    which, witness = np.nonzero(cosine > np.cos(np.radians(options.angle_deg)))
    loss, weight = np.zeros(len(candidates)), np.zeros(len(candidates))
    if len(which):
        others, here = witnesses[witness], np.full(len(which), view)
        relative = state[others].inverse().compose(candidates[which])
        ways = [(here, others, relative)]
        if back:
            ways.append((others, here, relative.inverse()))
        for source, target, way in ways:
            terms = pair_terms(level, source, target, way, kernels, derivatives=False)
            np.add.at(loss, which, terms.loss)
            np.add.at(weight, which, terms.weight)
    return loss, weight

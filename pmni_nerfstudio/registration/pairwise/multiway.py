# SPDX-License-Identifier: Apache-2.0
"""Phase one of registration: views' integrated depth maps are laid onto each other, all pairs at once, coarse to fine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from pmni_nerfstudio.geometry.sim3 import Similarities
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.pairwise.integrated_depth import (
    ReliefLevel,
    Reliefs,
    make_level,
    make_reliefs,
    working_views,
)
from pmni_nerfstudio.registration.pairwise.outliers import StuckOptions, stuck_views, try_again
from pmni_nerfstudio.registration.pairwise.residuals import Kernels, PairwiseProblem
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.views import Views

Progress = Callable[[str, float, float], None]
"""Told the stage, how far it is (0 to 1), and the cost."""

_INTEGRATION_ROUNDS = 60
"""Errors of depth are what is left of the poses' errors: .65, .55 and .38 deg on a part with flat faces with 12, 25 and
60 rounds (.02 deg with true depths, on another shape)."""


@dataclass(frozen=True)
class PairwiseLevel:
    """One resolution."""

    longest_side: int
    """Of the maps, about, in pixels."""
    points: int
    """At most, a view."""
    kernels: Kernels
    iterations: int
    """Of the solver, between two choices of pairs."""
    rounds: int
    """How often pairs are chosen, at most."""
    retries: int = 0
    """How often views that are stuck are tried again, at most."""


@dataclass(frozen=True)
class PairwiseSchedule:
    """Coarse to fine."""

    longest_side: int = 160
    """Of the working resolution, about, in pixels."""
    most_pixels: int = 8000
    """Of a view's mask there, in the mean. Integration's time grows faster than they do."""
    levels: tuple[PairwiseLevel, ...] = (
        PairwiseLevel(40, 150, Kernels(0.4, 0.25, 0.25), 15, 4, retries=2),
        PairwiseLevel(40, 400, Kernels(0.2, 0.14, 0.14), 15, 3, retries=2),
        PairwiseLevel(80, 600, Kernels(0.12, 0.08, 0.08), 20, 2, retries=1),
        PairwiseLevel(160, 1000, Kernels(0.08, 0.06, 0.06), 15, 1),
    )
    largest_angle_deg: float = 60.0
    """Between the axes of two views that are laid onto each other."""
    most_neighbours: int = 10
    """Views that a view is laid onto, spread over those within the angle."""
    least_neighbours: int = 4
    """Where fewer are within the angle, the nearest ones."""
    stuck: StuckOptions = field(default_factory=StuckOptions)
    initial_damping: float = 1e-2
    damping_floor: float = 1e-4
    relative_decrease: float = 2e-4


@dataclass(frozen=True, eq=False)
class PairwiseResult:
    """Where phase one ended."""

    poses: Poses
    """World to camera; in the world of the start, as near as a similarity brings them."""
    depth_scales: Float[np.ndarray, " n"]
    """World units per unit of the views' integrated depths (`Reliefs.depths`)."""
    cost: float
    """From 0 (all agrees) to 1."""
    view_costs: Float[np.ndarray, " n"]
    """The same of each view alone."""
    inliers: Float[np.ndarray, " n"]
    """Share of what a view sees of the others, and they of it, whose normals agree."""


def register_pairwise(
    views: Views,
    start: Poses,
    schedule: PairwiseSchedule = PairwiseSchedule(),
    seed: int = 0,
    on_progress: Progress | None = None,
    reliefs: Reliefs | None = None,
) -> PairwiseResult:
    """Lay all views' integrated depth maps onto each other, from rough poses.

    Args:
        views: all of them, at any resolution.
        start: rough poses, the object about the world's origin.
        schedule: levels, coarse to fine.
        seed: of the points drawn.
        on_progress: for a progress bar.
        reliefs: the views' depths (`integrated`), where they are at hand.

    Raises:
        ValueError: as many poses as views are needed.
    """
    if len(views) != len(start):
        raise ValueError(f"start: {len(start)} poses for {len(views)} views")
    reliefs = integrated(views, schedule, on_progress) if reliefs is None else reliefs
    spec = schedule.levels[0]
    level = level_of(reliefs, spec, np.random.default_rng(seed))
    # Places as they were given are better where the frame cuts the object, a common middle where they are very rough.
    begun = [settle(level, spec, state, schedule, rounds=1) for state in beginnings(reliefs, start)]
    state, _, _ = min(begun, key=lambda result: result[2])
    return refine(reliefs, state, start, schedule, seed, on_progress)


def integrated(views: Views, schedule: PairwiseSchedule, on_progress: Progress | None = None) -> Reliefs:
    """Depths of the views at the schedule's working resolution, roughly: what is laid onto each other needs no more."""
    from pmni_nerfstudio.integration.bilateral import integrate_normals

    if on_progress is not None:
        on_progress("depth maps", 0.0, float("nan"))
    return make_reliefs(
        working_views(views, schedule.longest_side, schedule.most_pixels),
        lambda normals, mask, K: integrate_normals(normals, mask, K, max_rounds=_INTEGRATION_ROUNDS),
    )


def level_of(reliefs: Reliefs, spec: PairwiseLevel, rng: np.random.Generator) -> ReliefLevel:
    """The reliefs at a level's resolution, or at their own where that is lower."""
    longest = max(reliefs.views.width, reliefs.views.height)
    return make_level(reliefs, max(1, round(longest / spec.longest_side)), spec.points, rng)


def beginnings(reliefs: Reliefs, start: Poses) -> list[Similarities]:
    """Similarities for rough poses: with the views' middles in one place, and with the cameras where they were."""
    R = np.swapaxes(start.R, 1, 2)
    typical = float(np.median(start.t[:, 2]))
    s = start.t[:, 2].clip(0.7 * typical, 1.4 * typical) / reliefs.distance
    at_cameras = start.centres() + s[:, None] * np.einsum("nij,nj->ni", R, reliefs.centres)
    return [Similarities(R, np.zeros_like(start.t), s), Similarities(R, at_cameras, s)]


def poses_of(reliefs: Reliefs, state: Similarities) -> Poses:
    """World to camera, for views' similarities."""
    return Poses(
        np.swapaxes(state.R, 1, 2),
        state.s[:, None] * reliefs.centres - np.einsum("nji,nj->ni", state.R, state.t),
    )


def settle(
    level: ReliefLevel,
    spec: PairwiseLevel,
    state: Similarities,
    schedule: PairwiseSchedule,
    rounds: int | None = None,
    on_step: Callable[[float], None] | None = None,
) -> tuple[Similarities, PairwiseProblem, float]:
    """Solve at one level, and choose pairs anew as the views turn.

    Returns:
        similarities, the last problem, and its cost.
    """
    told = (lambda _, cost: on_step(cost)) if on_step is not None else None
    criteria = Criteria(spec.iterations, schedule.initial_damping, schedule.damping_floor, schedule.relative_decrease)
    problem, solution = None, None
    for _ in range(spec.rounds if rounds is None else rounds):
        pairs = choose_pairs(state.R, schedule.largest_angle_deg, schedule.most_neighbours, schedule.least_neighbours)
        if problem is not None and solution is not None and solution.converged and problem.has_pairs(pairs):
            break
        problem = PairwiseProblem(level, pairs, spec.kernels)
        solution = solve(problem, state, criteria, told)
        state = solution.state
    assert problem is not None and solution is not None
    return state, problem, solution.cost


def refine(
    reliefs: Reliefs,
    state: Similarities,
    reference: Poses,
    schedule: PairwiseSchedule,
    seed: int,
    on_progress: Progress | None = None,
) -> PairwiseResult:
    """All levels, coarse to fine; views that are stuck are tried again on the way.

    Args:
        reliefs: the views' depths.
        state: to start from.
        reference: the rough poses: views that are stuck are sought about these, and the result is in their world.
        schedule: levels.
        seed: of the points drawn.
        on_progress: for a progress bar.
    """
    rng = np.random.default_rng(seed)
    began = np.swapaxes(reference.R, 1, 2)
    criteria = Criteria(30, schedule.initial_damping, schedule.damping_floor, schedule.relative_decrease)
    problem, cost = None, 1.0
    at_home: set[int] = set()  # tried, and best where they were
    for number, spec in enumerate(schedule.levels):
        taken = 0

        def on_step(cost: float) -> None:
            nonlocal taken
            taken += 1
            if on_progress is not None:
                part = min(1.0, taken / (spec.iterations * spec.rounds))
                on_progress("pairs of views", (number + part) / len(schedule.levels), cost)

        level = level_of(reliefs, spec, rng)
        state, problem, cost = settle(level, spec, state, schedule, on_step=on_step)
        for _ in range(spec.retries):
            stuck = [v for v in stuck_views(problem, state, schedule.stuck) if v not in at_home]
            tried, moved = try_again(level, state, np.array(stuck, int), began, spec.kernels, criteria, schedule.stuck)
            at_home.update(set(stuck) - set(moved))
            if not moved:
                break
            again = settle(level, spec, tried, schedule, on_step=on_step)
            if again[2] >= cost:  # all views together are the judge
                at_home.update(moved)
                break
            state, problem, cost = again
        if number == 0:
            at_home.clear()  # the coarsest level's word is not the last
    if problem is None:
        raise ValueError("schedule: has no levels")
    view_costs, inliers = problem.view_costs(state)
    scale, rotation, shift = align(poses_of(reliefs, state), reference)
    return PairwiseResult(
        poses=poses_of(reliefs, state).transformed(scale, rotation, shift),
        depth_scales=scale * state.s,
        cost=cost,
        view_costs=view_costs,
        inliers=inliers,
    )


def choose_pairs(
    R: Float[np.ndarray, "n 3 3"], largest_angle_deg: float, most: int, least: int
) -> Int[np.ndarray, "q 2"]:
    """Pairs of views that see much of the same, each in both directions.

    Args:
        R: the views' axes in the world, forward last.
        largest_angle_deg: between forward axes.
        most: others for a view, spread evenly over the angles there are.
        least: others for a view, the nearest ones, whatever the angle (but below 120 degrees: what those share is rim).
    """
    n = len(R)
    cosine = R[:, :, 2] @ R[:, :, 2].T
    np.fill_diagonal(cosine, -2)
    chosen = np.zeros((n, n), bool)
    for i in range(n):
        order = np.argsort(-cosine[i], kind="stable")
        within = int((cosine[i] > np.cos(np.radians(largest_angle_deg))).sum())
        if within <= least:
            near = order[: min(least, n - 1)]
            near = near[cosine[i, near] > -0.5]
        else:
            near = order[np.unique(np.linspace(0, within - 1, min(most, within)).round().astype(int))]
        chosen[i, near] = True
    return np.argwhere(chosen | chosen.T)

# SPDX-License-Identifier: Apache-2.0
"""Multiway registration: Sim(3) registration of all views' integrated depth maps at once, coarse to fine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pmni_nerfstudio.geometry.sim3 import Sim3
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.pairwise.integrated_depth import (
    IntegratedDepthMaps,
    PyramidLevel,
    at_working_resolution,
    integrate_views,
    make_level,
)
from pmni_nerfstudio.registration.pairwise.outliers import OutlierOptions, find_outliers, reinitialize_outliers
from pmni_nerfstudio.registration.pairwise.pair_selection import choose_pairs
from pmni_nerfstudio.registration.pairwise.residuals import Kernels, PairwiseProblem
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.views import Views

Progress = Callable[[str, float, float], None]
"""Called with the name of the stage, the fraction done (0 to 1), and the cost."""

_INTEGRATION_ROUNDS = 60
"""Rounds of normal integration. Depth errors limit the poses: 12, 25 and 60 rounds left .65, .55 and .38 degrees on a
part with flat faces; ground-truth depths left .02 degrees on another shape."""


@dataclass(frozen=True)
class PairwiseLevel:
    """One level of the coarse-to-fine registration."""

    longest_side: int
    """Approximate longest side of the maps, in pixels."""
    points: int
    """Largest number of points per view."""
    kernels: Kernels
    iterations: int
    """Solver iterations between two selections of pairs."""
    rounds: int
    """Largest number of selections of pairs."""
    retries: int = 0
    """Largest number of times that outlier views are re-initialized."""


@dataclass(frozen=True)
class PairwiseSchedule:
    """Schedule of pairwise registration, coarse to fine."""

    longest_side: int = 160
    """Approximate longest side of the maps at the working resolution, in pixels."""
    max_pixels: int = 8000
    """Largest mean number of mask pixels per view there; the time of normal integration grows faster than the pixels."""
    levels: tuple[PairwiseLevel, ...] = (
        PairwiseLevel(40, 150, Kernels(0.4, 0.25, 0.25), 15, 4, retries=2),
        PairwiseLevel(40, 400, Kernels(0.2, 0.14, 0.14), 15, 3, retries=2),
        PairwiseLevel(80, 600, Kernels(0.12, 0.08, 0.08), 20, 2, retries=1),
        PairwiseLevel(160, 1000, Kernels(0.08, 0.06, 0.06), 15, 1),
    )
    max_angle_deg: float = 60.0
    """Largest angle between the viewing directions of a pair."""
    max_neighbors: int = 10
    """Largest number of neighbors that a view is paired with, spread over those within the angle."""
    min_neighbors: int = 4
    """Number of nearest views that a view is paired with where fewer are within the angle."""
    outliers: OutlierOptions = field(default_factory=OutlierOptions)
    initial_damping: float = 1e-2
    damping_floor: float = 1e-4
    relative_decrease: float = 2e-4

    def criteria(self, iterations: int) -> Criteria:
        """Criteria of the solver."""
        return Criteria(iterations, self.initial_damping, self.damping_floor, self.relative_decrease)


@dataclass(frozen=True, eq=False)
class PairwiseResult:
    """Result of pairwise registration."""

    poses: Poses
    """World-to-camera poses, aligned with the initial poses by a similarity."""
    cost: float
    """Final cost, 0 (full agreement) to 1."""


def register_pairwise(
    views: Views,
    initial: Poses,
    schedule: PairwiseSchedule = PairwiseSchedule(),
    seed: int = 0,
    on_progress: Progress | None = None,
    maps: IntegratedDepthMaps | None = None,
) -> PairwiseResult:
    """Register the integrated depth maps of all views from rough poses.

    Args:
        views: all views, at any resolution.
        initial: rough poses; the object is near the world's origin.
        schedule: levels, coarse to fine.
        seed: seed of the surface points.
        on_progress: receives progress.
        maps: the views' depth maps from `integrate_at_working_resolution`, if already computed.

    Raises:
        ValueError: the numbers of poses and views differ.
    """
    if len(views) != len(initial):
        raise ValueError(f"initial: {len(initial)} poses for {len(views)} views")
    maps = integrate_at_working_resolution(views, schedule, on_progress) if maps is None else maps
    spec = schedule.levels[0]
    level = pyramid_level(maps, spec, np.random.default_rng(seed))
    candidates = [solve_level(level, spec, state, schedule, rounds=1) for state in initial_similarities(maps, initial)]
    state, _, _ = min(candidates, key=lambda result: result[2])
    return refine(maps, state, initial, schedule, seed, on_progress)


def integrate_at_working_resolution(
    views: Views, schedule: PairwiseSchedule, on_progress: Progress | None = None
) -> IntegratedDepthMaps:
    """Integrate the normals of all views at the schedule's working resolution."""
    from pmni_nerfstudio.integration.bilateral import integrate_normals

    if on_progress is not None:
        on_progress("depth maps", 0.0, float("nan"))
    return integrate_views(
        at_working_resolution(views, schedule.longest_side, schedule.max_pixels),
        lambda normals, mask, K: integrate_normals(normals, mask, K, max_rounds=_INTEGRATION_ROUNDS),
    )


def pyramid_level(maps: IntegratedDepthMaps, spec: PairwiseLevel, rng: np.random.Generator) -> PyramidLevel:
    """Maps at a level's resolution, or at the working resolution if that is lower."""
    longest_side = max(maps.views.width, maps.views.height)
    return make_level(maps, max(1, round(longest_side / spec.longest_side)), spec.points, rng)


def initial_similarities(maps: IntegratedDepthMaps, initial: Poses) -> list[Sim3]:
    """Two initializations from rough poses.

    The first puts the object's center of every view at the origin, which is better for very rough poses. The second
    keeps the camera centers, which is better where the image border cuts the object.
    """
    R = np.swapaxes(initial.R, 1, 2)
    median_depth = float(np.median(initial.t[:, 2]))
    s = initial.t[:, 2].clip(0.7 * median_depth, 1.4 * median_depth) / maps.distance
    from_centers = initial.centers() + s[:, None] * np.einsum("nij,nj->ni", R, maps.centers)
    return [Sim3(R, np.zeros_like(initial.t), s), Sim3(R, from_centers, s)]


def poses_from_similarities(maps: IntegratedDepthMaps, state: Sim3) -> Poses:
    """World-to-camera poses from the views' similarities."""
    return Poses(
        np.swapaxes(state.R, 1, 2),
        state.s[:, None] * maps.centers - np.einsum("nji,nj->ni", state.R, state.t),
    )


def solve_level(
    level: PyramidLevel,
    spec: PairwiseLevel,
    state: Sim3,
    schedule: PairwiseSchedule,
    rounds: int | None = None,
    on_step: Callable[[float], None] | None = None,
) -> tuple[Sim3, PairwiseProblem, float]:
    """Optimize all similarities at one level, selecting pairs anew until they no longer change.

    Args:
        level: maps and points.
        spec: settings of the level.
        state: initial similarities.
        schedule: settings of pair selection and solver.
        rounds: largest number of selections of pairs; `spec.rounds` if None.
        on_step: called with the cost after each accepted step.

    Returns:
        The similarities, the last problem, and its cost.
    """
    on_state = (lambda _, cost: on_step(cost)) if on_step is not None else None
    problem, solution = None, None
    for _ in range(spec.rounds if rounds is None else rounds):
        pairs = choose_pairs(state.R, schedule.max_angle_deg, schedule.max_neighbors, schedule.min_neighbors)
        if problem is not None and solution is not None and solution.converged and problem.has_pairs(pairs):
            break
        problem = PairwiseProblem(level, pairs, spec.kernels)
        solution = solve(problem, state, schedule.criteria(spec.iterations), on_state)
        state = solution.state
    assert problem is not None and solution is not None
    return state, problem, solution.cost


def refine(
    maps: IntegratedDepthMaps,
    state: Sim3,
    initial: Poses,
    schedule: PairwiseSchedule,
    seed: int,
    on_progress: Progress | None = None,
) -> PairwiseResult:
    """Solve all levels, coarse to fine, and re-initialize outlier views at each.

    Args:
        maps: the views' depth maps.
        state: initial similarities.
        initial: rough poses; outliers are searched around them, and the result is aligned with them.
        schedule: levels, coarse to fine.
        seed: seed of the surface points.
        on_progress: receives progress.
    """
    rng = np.random.default_rng(seed)
    initial_R = np.swapaxes(initial.R, 1, 2)
    problem, cost = None, 1.0
    confirmed: set[int] = set()  # outliers for which the search found nothing better
    for number, spec in enumerate(schedule.levels):
        steps = 0

        def on_step(cost: float) -> None:
            nonlocal steps
            steps += 1
            if on_progress is not None:
                done = min(1.0, steps / (spec.iterations * spec.rounds))
                on_progress("pairs of views", (number + done) / len(schedule.levels), cost)

        level = pyramid_level(maps, spec, rng)
        state, problem, cost = solve_level(level, spec, state, schedule, on_step=on_step)
        for _ in range(spec.retries):
            found = find_outliers(problem, state, schedule.outliers)
            outliers = np.array([view for view in found if view not in confirmed], int)
            candidate, moved = reinitialize_outliers(
                level, state, outliers, initial_R, spec.kernels, schedule.criteria(30), schedule.outliers
            )
            confirmed.update(set(outliers.tolist()) - set(moved))
            if not moved:
                break
            retried = solve_level(level, spec, candidate, schedule, on_step=on_step)
            if retried[2] >= cost:  # the cost over all views decides
                confirmed.update(moved)
                break
            state, problem, cost = retried
        if number == 0:
            confirmed.clear()  # the coarsest level is not reliable enough to confirm a pose for good
    if problem is None:
        raise ValueError("schedule: has no levels")
    poses = poses_from_similarities(maps, state)
    return PairwiseResult(poses.transformed(*align(poses, initial)), cost)

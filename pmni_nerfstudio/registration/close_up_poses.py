# SPDX-License-Identifier: Apache-2.0
"""Poses of close-ups: a search against the surface of the other views, then bundle adjustment on the detail they show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.geometry.object_sphere import centroid_rays
from pmni_nerfstudio.registration.alternation import AlternationSchedule
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleProblem
from pmni_nerfstudio.registration.close_up_detail import Cube, contours_in_cube, depths_in_cube
from pmni_nerfstudio.registration.confidence import view_agreement
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, Linearization, solve
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.relocalization import coarse_scores, refine_pose
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_SEARCH_ROUNDS, _SEARCH_CANDIDATES, _ELITE = 4, 150, 8
"""Rounds of the search, random poses per round, and the best of them that the next round starts from."""
_ROTATION_DEG, _SHIFT = 10.0, 0.12
"""Standard deviations of the first round: rotation about the part along each axis, and shift in radii of the sphere."""
_NARROWER = 0.55
"""Factor on the deviations from round to round."""
_REFINED = 4
"""Best poses of the search, which are refined."""
_CRITERIA = Criteria(max_iterations=4, initial_damping=1e-3, damping_floor=1e-9, relative_decrease=1e-4)


def place_close_up(
    one: Views, rough: Poses, surface: Surface, schedule: AlternationSchedule, rng: np.random.Generator
) -> Poses:
    """Find the pose of a close-up near a rough one, by its normals and silhouette on the surface of other views.

    The search draws poses about the rough one and narrows down on the best (the cross-entropy method); the best are
    refined by least squares.

    Args:
        one: the close-up.
        rough: its rough pose.
        surface: surface that other views have made, which need not have the detail that the close-up shows.
        schedule: options of the steps.
        rng: random generator.
    """
    ray = centroid_rays(one.K, one.masks)[0]
    depth = float(rough.t[0, 2])
    found = surface.depths(one, rough)
    if np.isfinite(found).any():
        depth = float(np.median(found[np.isfinite(found)]))
    part = (depth * ray - rough.t[0]) @ rough.R[0]
    # In a world about the part, rotations do not move it out of the frame.
    about = rough.transformed(1.0, np.eye(3), -part)
    smooth = one.blurred(surface.voxel / (depth / float(one.focal[0])))
    means, spread = about, 1.0
    scores = coarse_scores(smooth, rough, surface)
    for _ in range(_SEARCH_ROUNDS):
        chosen = np.concatenate([np.arange(len(means)), rng.integers(len(means), size=_SEARCH_CANDIDATES)])
        twists = spread * rng.normal(size=(len(chosen), 6)) * np.repeat([np.deg2rad(_ROTATION_DEG), _SHIFT], 3)
        twists[: len(means)] = 0
        drawn = means.subset(chosen).retract(twists)
        scores = coarse_scores(smooth, drawn.transformed(1.0, np.eye(3), part), surface)
        best = np.argsort(scores, kind="stable")[:_ELITE]
        means, scores, spread = drawn.subset(best), scores[best], spread * _NARROWER
    candidates = [rough] + [means.subset([k]).transformed(1.0, np.eye(3), part) for k in range(_REFINED)]
    options = replace(schedule.bundle, points=8000)
    refined = [refine_pose(smooth, pose, surface, options, seed=0) for pose in candidates]
    return min(refined, key=lambda pose: view_agreement(smooth, pose, surface).cost)


def adjust_close_ups(
    views: Views,
    poses: Poses,
    close_ups: Bool[np.ndarray, " n"],
    surface: Surface,
    cube: Cube,
    refined: Surface,
    schedule: AlternationSchedule,
    rng: np.random.Generator,
) -> Poses:
    """Normal bundle adjustment of the close-ups' poses on their detail; the other views stay and hold them in place.

    Args:
        views: all views.
        poses: their poses.
        close_ups: views to move.
        surface: surface of the whole object.
        cube: cube of the detail.
        refined: surface with the detail, in the world in which the cube is [-1, 1]^3.
        schedule: options of the steps, those of its finest level.
        rng: random generator of the surface points.
    """
    level = schedule.levels[-1]
    options = replace(schedule.bundle, points=level.points, huber=level.huber)
    curves = contours_in_cube(views, poses, surface, cube, options.contour_points)
    curves = [curve if moves else curve[:0] for curve, moves in zip(curves, close_ups)]
    local = cube.to_local(poses)
    depths = depths_in_cube(views, local, refined, surface.depths(views, poses) / cube.half, surface.voxel / cube.half)
    problem = BundleProblem(views, refined, local, depths, curves, options, rng)
    problem.pixel = float(np.median(local.t[close_ups, 2] / views.focal[close_ups]))
    moved = solve(_SomeViews(problem, np.flatnonzero(close_ups)), local, _CRITERIA).state
    return poses.replaced(np.flatnonzero(close_ups), cube.to_world(moved.subset(np.flatnonzero(close_ups))))


class _SomeViews:
    """A `BundleProblem` in which only some of the poses are unknown.

    Args:
        problem: problem of all views.
        views: indices of the views whose poses are unknown.
    """

    def __init__(self, problem: BundleProblem, views: np.ndarray) -> None:
        self._problem = problem
        self._unknowns = (6 * views[:, None] + np.arange(6)).ravel()

    def linearize(self, state: Poses) -> Linearization:
        """Cost, gradient and Hessian by the unknown poses."""
        whole = self._problem.linearize(state)
        at = self._unknowns
        return Linearization(whole.hessian[np.ix_(at, at)], whole.gradient[at], whole.cost)

    def retract(self, state: Poses, delta: Float[np.ndarray, " p"]) -> Poses:
        """The unknown poses moved by their twists."""
        twists = np.zeros(6 * len(state))
        twists[self._unknowns] = delta
        return self._problem.retract(state, twists)

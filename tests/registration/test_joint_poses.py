# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment of poses that several moments share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from helpers.registration import rotation_errors_deg, true_surface, turned
from helpers.scenes import capture
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.registration.alternation import (
    AlternationSchedule,
    Level,
    Round,
    all_moments,
    alternate,
    alternate_frames,
)
from pmni_nerfstudio.registration.bundle_adjustment.joint import JointProblem
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleOptions, BundleProblem
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import contours
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.views import Views

FRAMES = 4


def tilted_views(views: Views, seed: int, bias_deg: float = 3.0) -> Views:
    """Views of which each has its normals rotated as a whole, as by a bias that changes from moment to moment."""
    rotations = Rotation.from_rotvec(
        np.deg2rad(bias_deg) * np.random.default_rng(seed).normal(size=(len(views), 3)) / 2
    )
    return replace(views, normals=np.einsum("nij,nhwj->nhwi", rotations.as_matrix(), views.normals).astype(np.float32))


def problem(views: Views, poses: Poses, seed: int = 0) -> BundleProblem:
    surface, options = true_surface(), BundleOptions(points=300)
    depths = surface.depths(views, poses)
    curves = contours(views, 50)
    return BundleProblem(
        views, surface, poses, depths, curves, options, np.random.default_rng(seed), fixed_normals=True
    )


def test_errors_that_change_between_moments_average_out():
    _, views, truth = capture()
    start = turned(truth, 2.0)
    problems = [problem(tilted_views(views, seed), start, seed) for seed in range(FRAMES)]
    criteria = Criteria(max_iterations=3, initial_damping=1e-4)
    single = [rotation_errors_deg(solve(one, start, criteria).state, truth).mean() for one in problems]
    joint = rotation_errors_deg(solve(JointProblem(problems), start, criteria).state, truth).mean()
    assert joint < 0.75 * np.mean(single)


def test_the_joint_cost_is_the_mean_of_the_moments():
    _, views, truth = capture()
    start = turned(truth, 2.0)
    problems = [problem(tilted_views(views, seed), start, seed) for seed in range(2)]
    joint, parts = JointProblem(problems).linearize(start), [one.linearize(start) for one in problems]
    assert joint.cost == np.mean([part.cost for part in parts])
    assert np.allclose(joint.gradient, sum(part.gradient for part in parts) / 2)
    assert np.allclose(joint.hessian, sum(part.hessian for part in parts) / 2)


def test_several_equal_moments_give_the_poses_and_surface_of_one():
    _, views, truth = capture()
    schedule = AlternationSchedule()
    short = replace(schedule, levels=(replace(schedule.levels[1], resolution=49, rounds=1, points=1000),))
    start = turned(truth, 1.0)
    poses, surface = alternate(views, start, short)
    joint, surfaces = alternate_frames([views, views], start, short)
    assert rotation_errors_deg(joint, poses).max() < 0.3
    assert len(surfaces) == 2
    near = np.abs(surface.sdf) < 0.05
    assert all(np.abs(s.sdf - surface.sdf)[near].mean() < 2e-3 for s in surfaces)


def test_all_moments_cover_the_object_at_each():
    _, views, _ = capture()
    left, right = views.masks.copy(), views.masks.copy()
    left[:, :, 40:], right[:, :, :40] = False, False
    union = all_moments([replace(views, masks=left), replace(views, masks=right)])
    assert np.array_equal(union.masks, views.masks) and union.unknown is None


def test_the_residual_of_a_view_is_the_mean_over_the_moments_in_which_it_is_known():
    _, views, truth = capture()
    blank = replace(views, normals=np.zeros_like(views.normals))
    schedule = AlternationSchedule(levels=(Level(33, 1, points=300, hull_votes=1),))
    rounds: list[Round] = []
    for frames in ([views], [views, blank], [blank]):
        alternate_frames(frames, truth, schedule, on_round=rounds.append)
    known, mixed, none = (one.residual_deg for one in rounds)
    assert np.isfinite(known).all() and np.isfinite(mixed).all() and np.isnan(none).all()
    assert rounds[1].median_residual_deg == np.median(mixed) and np.isnan(rounds[2].median_residual_deg)

# SPDX-License-Identifier: Apache-2.0
"""Pairwise registration: selection of pairs, outlier views, and poses recovered from noise."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from helpers.pairwise import rough_capture, true_maps
from helpers.registration import rotation_errors_deg
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.sim3 import angles_deg
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria
from pmni_nerfstudio.registration.pairwise.integrated_depth import (
    IntegratedDepthMaps,
    at_working_resolution,
    make_level,
)
from pmni_nerfstudio.registration.pairwise.multiway import (
    PairwiseSchedule,
    integrate_at_working_resolution,
    poses_from_similarities,
    register_pairwise,
    solve_level,
)
from pmni_nerfstudio.registration.pairwise.outliers import find_outliers, reinitialize_outliers
from pmni_nerfstudio.registration.pairwise.pair_selection import choose_pairs
from pmni_nerfstudio.registration.pairwise.residuals import PairwiseProblem
from pmni_nerfstudio.registration.poses import Poses, align


@lru_cache
def integrated_maps() -> IntegratedDepthMaps:
    return integrate_at_working_resolution(rough_capture()[1], PairwiseSchedule())


# Selection of pairs


def ring_rotations(count: int) -> np.ndarray:
    return Rotation.from_rotvec(np.radians(360 / count) * np.arange(count)[:, None] * [0, 1, 0]).as_matrix()


@pytest.mark.parametrize(("views", "neighbors"), [(5, 4), (20, 6), (72, 10)])
def test_pairs_of_a_ring(views, neighbors):
    R = ring_rotations(views)
    pairs = choose_pairs(R, 60, 10, 4 if views > 5 else 2)
    assert {tuple(p) for p in pairs} == {tuple(p[::-1]) for p in pairs}
    assert (pairs[:, 0] != pairs[:, 1]).all()
    counts = np.bincount(pairs[:, 0], minlength=views)
    assert counts.min() >= min(neighbors, 2 if views == 5 else neighbors)
    assert counts.max() <= 2 * 10
    apart = angles_deg(R[pairs[:, 0]], R[pairs[:, 1]])
    assert apart.max() < (73 if views == 5 else 60.1)
    if views == 72:  # not only the nearest views, which would let errors accumulate around the ring
        assert apart.max() > 50


# Registration


def test_poses_come_back_from_noise():
    scene, views = rough_capture()
    initial, truth = Poses.from_c2w(scene.c2w_rough), Poses.from_c2w(scene.c2w)
    progress = []
    result = register_pairwise(
        views, initial, on_progress=lambda stage, done, cost: progress.append(done), maps=integrated_maps()
    )
    before, after = rotation_errors_deg(initial, truth), rotation_errors_deg(result.poses, truth)
    assert before.mean() > 8
    assert after.mean() < 1.5
    assert after.max() < 3
    assert result.cost < 0.4
    # In the world of the rough poses, whose mean scale is right.
    assert np.linalg.norm(result.poses.centers(), axis=1).mean() == pytest.approx(15, rel=0.1)
    scale = align(result.poses, initial)[0]
    assert scale == pytest.approx(1, abs=1e-3)
    assert progress == sorted(progress)
    assert 0 < progress[0] <= progress[-1] <= 1
    again = register_pairwise(views, initial, maps=integrated_maps())
    np.testing.assert_array_equal(again.poses.R, result.poses.R)


def test_five_views():
    scene, views = rough_capture(views=5, seed=4)
    result = register_pairwise(views, Poses.from_c2w(scene.c2w_rough))
    assert rotation_errors_deg(result.poses, Poses.from_c2w(scene.c2w)).max() < 4


def test_an_outlier_view_is_found_and_reinitialized():
    maps, truth = true_maps()
    kernels = PairwiseSchedule().levels[1].kernels
    level = make_level(maps, 2, 300, np.random.default_rng(0))
    turned = Rotation.from_euler("xyz", [20, 55, 30], degrees=True).as_matrix()[None]
    lost = truth.replaced(4, replace(truth[[4]], R=turned @ truth.R[[4]]))
    problem = PairwiseProblem(level, choose_pairs(lost.R, 60, 10, 4), kernels)
    assert find_outliers(problem, lost).tolist() == [4]
    state, moved = reinitialize_outliers(level, lost, np.array([4]), lost.R, kernels, Criteria(12, damping_floor=1e-4))
    assert moved == [4]
    assert angles_deg(state.R[[4]], truth.R[[4]])[0] < 5
    np.testing.assert_array_equal(state.R[:4], truth.R[:4])


def test_right_poses_are_not_reinitialized():
    maps, truth = true_maps()
    level = make_level(maps, 2, 300, np.random.default_rng(0))
    kernels, criteria = PairwiseSchedule().levels[1].kernels, Criteria(12, damping_floor=1e-4)
    state, moved = reinitialize_outliers(level, truth, np.array([2, 7]), truth.R, kernels, criteria)
    assert moved == []
    np.testing.assert_array_equal(state.R, truth.R)


def test_true_depths_give_true_poses():
    maps, similarities = true_maps()
    truth = Poses.from_c2w(rough_capture()[0].c2w)
    level = make_level(maps, 1, 400, np.random.default_rng(0))
    schedule = PairwiseSchedule()
    off = similarities.retract(0.02 * np.random.default_rng(0).standard_normal((10, 7)))
    state, _, _ = solve_level(level, schedule.levels[-1], off, schedule)
    before, after = (rotation_errors_deg(poses_from_similarities(maps, s), truth) for s in (off, state))
    assert before.mean() > 1
    assert after.mean() < 0.15


def test_working_resolution():
    _, views = rough_capture()
    small = at_working_resolution(views, 40, 8000)
    assert (small.width, small.height) == (40, 34)
    assert at_working_resolution(views, 160, 8000).width == 80
    pixels = int(views.masks.sum(axis=(1, 2)).mean())
    assert at_working_resolution(views, 160, pixels // 2).width == 40  # as where the object fills the image


def test_numbers_of_poses_and_views_must_agree():
    scene, views = rough_capture()
    with pytest.raises(ValueError, match="initial: 9 poses for 10 views"):
        register_pairwise(views, Poses.from_c2w(scene.c2w_rough[:9]))

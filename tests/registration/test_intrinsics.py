# SPDX-License-Identifier: Apache-2.0
"""Refinement of shared intrinsics: derivatives, errors that are corrected, and cases that are left alone."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from helpers.registration import affine_normals, bundle_problem, lattice, rotation_errors_deg, true_surface, turned
from helpers.scenes import capture, fitting_intrinsics

from pmni_nerfstudio.geometry.cameras import corrected_intrinsics
from pmni_nerfstudio.registration.alternation import AlternationSchedule, Level, alternate
from pmni_nerfstudio.registration.bundle_adjustment.intrinsics import (
    CameraProblem,
    Cameras,
)
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleProblem
from pmni_nerfstudio.registration.intrinsics import IntrinsicsOptions, RefinedIntrinsics, refine_intrinsics
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

COARSE = AlternationSchedule(levels=(Level(33, 4, blur=0.03, huber=0.1, hull_votes=3, slack_voxels=1.0),))
QUICK = IntrinsicsOptions(level=Level(49, 2, hull_votes=2, slack_voxels=0.5, points=1500))


@lru_cache
def near_capture() -> tuple[Views, Poses]:
    """Twelve views of a blob from three object radii away, and their true poses."""
    _, views, poses = capture(distance=3.0, width=96, height=80)
    return views, poses


def finite_differences(p: BundleProblem, cameras: Cameras, step: float) -> np.ndarray:
    """Derivatives of the cost by twists and intrinsics."""
    whole = CameraProblem(p, np.ones(3, dtype=bool))

    def cost(delta: np.ndarray) -> float:
        return whole.linearize(whole.retract(cameras, delta)).cost

    count = 6 * len(cameras.poses) + 3
    return np.array([(cost(d) - cost(-d)) / (2 * step) for d in step * np.eye(count)])


def skewed(views: Views) -> Views:
    """Views whose intrinsics have skew and two focal lengths."""
    K = views.K.copy()
    K[:, 0, 1] = 0.03 * K[:, 0, 0]
    K[:, 1, 1] *= 1.05
    return replace(views, K=K)


@pytest.mark.parametrize("fixed_normals", [False, True])
def test_gradient_of_normals_by_intrinsics_is_that_of_the_cost(fixed_normals):
    views, truth = near_capture()
    views, poses = affine_normals(skewed(views)), turned(truth, 2.0)
    p = bundle_problem(poses, fixed_normals=fixed_normals, views=views, silhouette_weight=0.0, depth_sigma_voxels=1e-4)
    gradient = p.linearize_shared(poses, views.K, with_intrinsics=True).gradient
    np.testing.assert_allclose(p.shared_gradients.sum(axis=0), gradient[-3:], atol=1e-5 * np.abs(gradient).max())
    numeric = finite_differences(p, Cameras(poses, views.K), 2e-3)
    np.testing.assert_allclose(gradient, numeric, atol=1e-4 * np.abs(gradient).max())
    assert np.abs(gradient[-3:]).min() > 1e-3 * np.abs(gradient).max()
    np.testing.assert_array_equal(p.linearize(poses).gradient[:6], p.linearize_shared(poses, views.K).gradient[:6])


def test_gradient_of_silhouettes_by_intrinsics_is_that_of_the_cost():
    views, truth = near_capture()
    views, poses = skewed(views), turned(truth, 2.0)
    sdf = np.linalg.norm(lattice(129) - [0.1, -0.05, 0.15], axis=1) - 0.6
    surface = Surface(sdf.reshape(129, 129, 129).astype(np.float32))
    p, without = (
        bundle_problem(
            poses,
            fixed_normals=True,
            views=views,
            surface=surface,
            points=50,
            silhouette_weight=weight,
            silhouette_huber_px=50.0,
        )
        for weight in (1.0, 0.0)
    )
    cameras = Cameras(poses, views.K)
    gradient = (
        p.linearize_shared(poses, views.K, with_intrinsics=True).gradient
        - without.linearize_shared(poses, views.K, with_intrinsics=True).gradient
    )
    numeric = finite_differences(p, cameras, 5e-3) - finite_differences(without, cameras, 5e-3)
    np.testing.assert_allclose(gradient, numeric, atol=5e-3 * np.abs(numeric).max())


@pytest.mark.parametrize(("focal_factor", "shift_px"), [(1.0, (6.0, 6.0)), (1.25, (0.0, 0.0))])
def test_wrong_intrinsics_of_near_cameras_come_back(focal_factor, shift_px):
    views, truth = near_capture()
    wrong = replace(views, K=corrected_intrinsics(views.K, focal_factor, np.array(shift_px)))
    rough, surface = alternate(wrong, truth, COARSE)
    included = np.arange(len(views)) != 5
    refined, poses, _, change = refine_intrinsics(wrong, rough, surface, included, options=QUICK)
    assert change.applied and change.warning is not None
    assert abs(refined.K[0, 0, 0] / views.K[0, 0, 0] - 1) < 0.05
    assert np.abs(refined.K[0, :2, 2] - views.K[0, :2, 2]).max() < 1.0
    assert rotation_errors_deg(poses.subset(included), truth.subset(included)).mean() < 0.5
    np.testing.assert_allclose(change.corrected(wrong.K), refined.K)
    np.testing.assert_allclose(change.corrected(wrong.strided(2).K)[:, :2], refined.K[:, :2] / 2)


def test_right_intrinsics_of_near_cameras_stay():
    views, truth = near_capture()
    same, poses, _, change = refine_intrinsics(
        views, truth, true_surface(), np.ones(len(views), dtype=bool), options=QUICK
    )
    assert same is views and poses is truth
    assert not change.applied and change.warning is None
    assert change.focal_observable and change.center_observable


@pytest.mark.parametrize("shift_px", [0.0, 4.0])
def test_intrinsics_of_far_cameras_are_not_observable(shift_px):
    _, views, truth = capture()
    views = replace(views, K=corrected_intrinsics(views.K, 1.0, np.full(2, shift_px)))
    same, poses, _, change = refine_intrinsics(
        views, truth, true_surface(), np.ones(len(views), dtype=bool), options=QUICK
    )
    assert same is views and poses is truth
    assert not change.applied
    assert not change.focal_observable and not change.center_observable
    assert "too far" in change.reason
    assert change.corrected(views.K) is views.K


def test_refinement_can_be_switched_off_and_needs_views():
    views, truth = near_capture()
    few = np.arange(len(views)) < 4
    for included, options in ((~few, IntrinsicsOptions(enabled=False)), (few, QUICK)):
        same, _, _, change = refine_intrinsics(views, truth, true_surface(), included, options=options)
        assert same is views and not change.applied
        assert change.statistics(views.K)["focal_std_percent"] is None


def test_changes_are_reported_in_pixels_of_the_given_resolution():
    K = np.tile(fitting_intrinsics(80, 60, 3.0), (4, 1, 1))
    change = RefinedIntrinsics(0.8, (0.1, -0.05), 0.02, (0.01, 0.01), True, True, "because")
    statistics = change.statistics(K)
    assert statistics["applied"]
    assert statistics["focal_change_percent"] == pytest.approx(-20)
    assert statistics["principal_point_change_px"] == pytest.approx([0.1 * K[0, 0, 0], -0.05 * K[0, 0, 0]])
    assert change.statistics(2 * K)["principal_point_change_px"][0] == pytest.approx(0.2 * K[0, 0, 0])
    views = replace(near_capture()[0], K=np.tile(K[:1], (12, 1, 1)))
    percent = 100 * 0.1 * K[0, 0, 0] / views.width
    assert change.describe(views).startswith(f"-20.0 +- 2.0% of the focal length, and ({percent:+.1f}, ")

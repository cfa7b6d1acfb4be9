# SPDX-License-Identifier: Apache-2.0
"""Normal bundle adjustment: derivatives, elimination of the points, and poses recovered with a surface."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.holes import views_with_holes
from helpers.registration import affine_normals, bundle_problem, lattice, rotation_errors_deg, true_surface, turned
from helpers.scenes import capture

from pmni_nerfstudio.geometry.cameras import project
from pmni_nerfstudio.geometry.interpolation import nearest
from pmni_nerfstudio.registration.alternation import AlternationSchedule, Level, alternate
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleOptions, BundleProblem
from pmni_nerfstudio.registration.confidence import view_agreement
from pmni_nerfstudio.registration.framing import frame_object
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.relocalization import relocalize
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.symmetry import find_symmetry
from pmni_nerfstudio.synth.shapes import SHAPES

SHORT = AlternationSchedule(
    levels=(Level(33, 5, blur=0.033, huber=0.15, hull_votes=3, slack_voxels=2.0), Level(65, 6, huber=0.05))
)
CRITERIA = Criteria(max_iterations=15, initial_damping=1e-4, damping_floor=1e-9, relative_decrease=1e-4)


def finite_differences(p: BundleProblem, poses: Poses, step: float) -> np.ndarray:
    def cost(delta: np.ndarray) -> float:
        return p.linearize(p.retract(poses, delta)).cost

    return np.array([(cost(d) - cost(-d)) / (2 * step) for d in step * np.eye(6 * len(poses))])


@pytest.mark.parametrize(("fixed_normals", "huber"), [(False, 10.0), (True, 10.0), (True, 0.1)])
def test_gradient_of_normals_is_that_of_the_cost(fixed_normals, huber):
    """Affine maps make bilinear interpolation and central differences exact, so the cost is smooth.

    The points are held in place: with them free, the exact derivative of the eliminated cost has a second-order part
    that Gauss-Newton omits. What remains are lookups in single precision, 1e-5 of the gradient.
    """
    poses = turned(capture()[2], 2.0)
    p = bundle_problem(
        poses,
        fixed_normals=fixed_normals,
        views=affine_normals(capture()[1]),
        huber=huber,
        silhouette_weight=0.0,
        depth_sigma_voxels=1e-4,
    )
    gradient = p.linearize(poses).gradient
    np.testing.assert_allclose(gradient, finite_differences(p, poses, 2e-3), atol=1e-4 * np.abs(gradient).max())


def test_gradient_of_silhouettes_is_that_of_the_cost():
    """Gradients of a grid are central differences: on a fine grid of a sphere 0.1% off the slopes of interpolation."""
    _, views, truth = capture()
    poses = turned(truth, 2.0)
    sdf = np.linalg.norm(lattice(129) - [0.1, -0.05, 0.15], axis=1) - 0.6
    surface = Surface(sdf.reshape(129, 129, 129).astype(np.float32))
    p, without = (
        bundle_problem(
            poses, fixed_normals=True, surface=surface, points=50, silhouette_weight=weight, silhouette_huber_px=50.0
        )
        for weight in (1.0, 0.0)
    )
    gradient = p.linearize(poses).gradient - without.linearize(poses).gradient
    numeric = finite_differences(p, poses, 5e-3) - finite_differences(without, poses, 5e-3)
    np.testing.assert_allclose(gradient, numeric, atol=5e-3 * np.abs(numeric).max())


def test_elimination_equals_a_dense_solution_for_poses_and_points():
    poses = turned(capture()[2], 1.0)
    p = bundle_problem(poses, points=25, silhouette_weight=0.0)
    linear = p.linearize(poses)
    views, points = len(p.views), len(p.points)
    rows, rights = [], []
    for i, visible in enumerate(p.visible):
        observed = p._observe(poses, i, p.views.K[i], with_intrinsics=False, bias=None)
        for j, k in enumerate(visible.index):
            row = np.zeros((3, 6 * views + 4 * points))
            row[:, 6 * i : 6 * i + 6] = observed.jacobian[:, j]
            row[:, 6 * views + 4 * k : 6 * views + 4 * k + 3] = -np.eye(3)
            row[:, 6 * views + 4 * k + 3] = observed.by_offset[j]
            rows.append(np.sqrt(visible.weight[j]) * row)
            rights.append(-np.sqrt(visible.weight[j]) * observed.normals[j])
    for k in range(points):
        row = np.zeros((1, 6 * views + 4 * points))
        row[0, 6 * views + 4 * k + 3] = p.options.huber / (p.options.depth_sigma_voxels * p.surface.voxel)
        rows.append(row)
        rights.append(np.zeros(1))
    dense, right = np.concatenate(rows), np.concatenate(rights)
    damping = 1e-3 * np.eye(6 * views)
    full = dense.T @ dense
    scale = 1 / (p.options.huber**2 * points)
    full[: 6 * views, : 6 * views] += damping / scale
    expected = np.linalg.lstsq(full, dense.T @ right, rcond=1e-12)[0][: 6 * views]
    got = np.linalg.solve(linear.hessian + damping, -linear.gradient)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-5)


def test_poses_come_back_on_the_true_surface():
    truth = capture()[2]
    poses = turned(truth, 2.0)
    assert rotation_errors_deg(poses, truth).mean() > 1.0
    for seed in range(3):
        p = bundle_problem(poses, seed, points=3000, huber=0.1)
        poses = solve(p, poses, CRITERIA).state
    errors = rotation_errors_deg(poses, truth)
    assert errors.mean() < 0.15
    assert errors.max() < 0.4
    assert np.nanmedian(p.residual_deg) < 1.5


def test_alternation_recovers_poses_and_surface_and_is_deterministic():
    _, views, truth = capture()
    rough = turned(truth, 5.0)
    poses, surface = alternate(views, rough, SHORT, seed=1)
    assert rotation_errors_deg(poses, truth).mean() < 0.4
    agreement = view_agreement(views, poses, surface)
    assert agreement.iou.min() > 0.93
    assert np.median(agreement.median_deg) < 4
    again, _ = alternate(views, rough, SHORT, seed=1)
    assert np.array_equal(again.R, poses.R) and np.array_equal(again.t, poses.t)


def test_no_point_is_seen_through_a_hole():
    _, views, truth = capture()
    holed = views_with_holes(views)
    p, whole = (bundle_problem(truth, views=v) for v in (holed, views))
    for i, (seen, without) in enumerate(zip(p.visible, whole.visible)):
        row, column, _ = nearest(
            project(truth.to_camera(i, p.points[seen.index]), views.K[i]), views.width, views.height
        )
        assert holed.valid[i, row, column].all()
        assert 0.5 * len(without.index) < len(seen.index) < len(without.index)
    np.testing.assert_array_equal(p.contours[0], whole.contours[0])


def test_agreement_with_a_surface_ignores_holes():
    """At the true poses, views of which a fifth has no normals fit the surface as well as whole ones."""
    _, views, truth = capture()
    whole, holed = (view_agreement(v, truth, true_surface()) for v in (views, views_with_holes(views)))
    np.testing.assert_array_equal(holed.iou, whole.iou)
    np.testing.assert_allclose(holed.inlier_ratio, whole.inlier_ratio, atol=0.05)
    np.testing.assert_allclose(holed.residual_deg, whole.residual_deg, atol=0.5)


def test_alternation_recovers_poses_from_views_with_holes():
    _, views, truth = capture()
    poses, surface = alternate(views_with_holes(views), turned(truth, 5.0), SHORT, seed=1)
    assert rotation_errors_deg(poses, truth).mean() < 0.5
    agreement = view_agreement(views, poses, surface)  # also where no normals were given
    assert agreement.iou.min() > 0.93
    assert np.median(agreement.median_deg) < 4


def test_alternation_with_fixed_poses_finds_the_surface():
    _, views, truth = capture()
    poses, surface = alternate(views, truth, SHORT, fixed_poses=True)
    assert poses is truth
    distances = np.abs(SHAPES["blob"].sdf(torch.from_numpy(surface.mesh[0])).numpy())
    assert np.median(distances) < 0.004


def test_a_shifted_world_is_framed():
    _, views, truth = capture()
    away = truth.transformed(1.4, np.eye(3), np.array([1.5, -0.7, 0.9]))
    framed = frame_object(views, away, votes=2)
    middle = true_surface().mesh[0]
    middle = 0.5 * (middle.min(axis=0) + middle.max(axis=0))
    # The world's origin projects to where the object's center projects at the true poses.
    expected = np.stack([truth.to_camera(i, middle[None])[0] for i in range(len(truth))])
    off = framed.t[:, :2] / framed.t[:, 2:] - expected[:, :2] / expected[:, 2:]
    assert np.abs(off).max() * 15 < 0.06


def test_an_outlier_view_is_found_and_relocalized():
    _, views, truth = capture()
    surface = true_surface()
    lost = truth.replaced([4], truth.subset([9]))
    outliers = view_agreement(views, lost, surface).outliers()
    assert np.flatnonzero(outliers).tolist() == [4]
    assert not view_agreement(views, truth, surface).outliers().any()
    found = relocalize(views, lost, outliers, surface, BundleOptions(), seed=0)
    assert rotation_errors_deg(found, truth)[4] < 0.5
    assert np.array_equal(found.R[~outliers], lost.R[~outliers])
    assert view_agreement(views, found, surface).confidence[4] > 0.8


def _cube(points: np.ndarray) -> np.ndarray:
    q = np.abs(points) - 0.5
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(axis=1), 0)


def _bottle(points: np.ndarray) -> np.ndarray:
    return np.maximum(
        np.linalg.norm(points[:, :2], axis=1) - 0.3 - 0.1 * np.sin(4 * points[:, 2]), np.abs(points[:, 2]) - 0.7
    )


@pytest.mark.parametrize("shape", ["sphere", "cube", "bottle"])
def test_symmetric_shapes_are_detected(shape):
    points = lattice(65)
    sdf = {"sphere": np.linalg.norm(points, axis=1) - 0.6, "cube": _cube(points), "bottle": _bottle(points)}[shape]
    symmetry = find_symmetry(Surface(sdf.reshape(65, 65, 65).astype(np.float32)))
    assert symmetry is not None
    assert "onto itself" in symmetry.describe()
    if shape == "bottle":
        assert abs(symmetry.axis[2]) > 0.99
        assert symmetry.continuous


@pytest.mark.parametrize("shape", ["blob", "figure", "bracket", "knot"])
def test_other_shapes_are_not_symmetric(shape):
    assert find_symmetry(true_surface(shape)) is None

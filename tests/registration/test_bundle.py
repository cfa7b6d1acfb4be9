# SPDX-License-Identifier: Apache-2.0
"""Normal bundle adjustment: derivatives against differences, the elimination against a dense twin, poses that return."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.registration_scenes import capture, lattice, rotation_errors_deg, true_surface, turned

from pmni_nerfstudio.registration.alternation import AlternationSchedule, Level, alternate
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleOptions, BundleProblem
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import contours
from pmni_nerfstudio.registration.confidence import judge
from pmni_nerfstudio.registration.framing import frame_object
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.relocalization import relocate
from pmni_nerfstudio.registration.symmetry import find_symmetry
from pmni_nerfstudio.synth.shapes import SHAPES

SHORT = AlternationSchedule(
    levels=(Level(33, 5, blur=0.033, huber=0.15, hull_votes=3, slack_voxels=2.0), Level(65, 6, huber=0.05))
)
CRITERIA = Criteria(max_iterations=15, initial_damping=1e-4, damping_floor=1e-9, relative_decrease=1e-4)


def problem(poses: Poses, seed: int = 0, anchored: bool = False, **changes) -> BundleProblem:
    _, views, _ = capture()
    surface = true_surface()
    options = BundleOptions(**({"points": 400, "huber": 10.0} | changes))
    depths = surface.depths(views, poses)
    rng = np.random.default_rng(seed)
    return BundleProblem(views, surface, poses, depths, contours(views, 40), options, rng, anchored=anchored)


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("silhouette_weight", [0.0, 1.0])
def test_gradient_against_finite_differences(anchored, silhouette_weight):
    poses = turned(capture()[2], 2.0)
    # Held points: the profiled cost's exact derivative has a second-order part in the points' places.
    p = problem(poses, anchored=anchored, silhouette_weight=silhouette_weight, depth_sigma_voxels=1e-3)
    gradient = p.linearize(poses).gradient
    numeric = np.empty_like(gradient)
    for k in range(len(gradient)):
        delta = np.zeros(len(gradient))
        delta[k] = 2e-3
        numeric[k] = (p.linearize(p.retract(poses, delta)).cost - p.linearize(p.retract(poses, -delta)).cost) / 4e-3
    # Slopes of the maps are differences over two pixels, interpolated; the maps themselves are straight between pixels.
    assert np.corrcoef(gradient, numeric)[0, 1] > 0.98
    assert np.linalg.norm(gradient - numeric) < 0.2 * np.linalg.norm(numeric)


def test_elimination_equals_a_dense_solution_for_poses_and_points():
    poses = turned(capture()[2], 1.0)
    p = problem(poses, points=25, silhouette_weight=0.0)
    linear = p.linearize(poses)
    views, points = len(p.views), len(p.points)
    rows, rights = [], []
    for i, sight in enumerate(p.sights):
        normals, by_twist, by_depth = p._observe(poses, i)
        for j, k in enumerate(sight.index):
            row = np.zeros((3, 6 * views + 4 * points))
            row[:, 6 * i : 6 * i + 6] = by_twist[j]
            row[:, 6 * views + 4 * k : 6 * views + 4 * k + 3] = -np.eye(3)
            row[:, 6 * views + 4 * k + 3] = by_depth[j]
            rows.append(np.sqrt(sight.weight[j]) * row)
            rights.append(-np.sqrt(sight.weight[j]) * normals[j])
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
        p = problem(poses, seed, points=3000, huber=0.1)
        poses = solve(p, poses, CRITERIA).state
    errors = rotation_errors_deg(poses, truth)
    assert errors.mean() < 0.15
    assert errors.max() < 0.4
    assert np.nanmedian(p.residual_deg) < 1.5


def test_poses_and_surface_come_back_together_and_alike_for_a_seed():
    _, views, truth = capture()
    rough = turned(truth, 5.0)
    poses, surface = alternate(views, rough, SHORT, seed=1)
    assert rotation_errors_deg(poses, truth).mean() < 0.4
    judgement = judge(views, poses, surface)
    assert judgement.iou.min() > 0.93
    assert np.median(judgement.median_deg) < 4
    again, _ = alternate(views, rough, SHORT, seed=1)
    assert np.array_equal(again.R, poses.R) and np.array_equal(again.t, poses.t)


def test_with_fixed_poses_the_surface_alone_is_found():
    _, views, truth = capture()
    poses, surface = alternate(views, truth, SHORT, fixed_poses=True)
    assert poses is truth
    distances = np.abs(SHAPES["blob"].sdf(__import__("torch").from_numpy(surface.mesh[0])).numpy())
    assert np.median(distances) < 0.004


def test_a_shifted_world_is_framed():
    _, views, truth = capture()
    away = truth.transformed(1.4, np.eye(3), np.array([1.5, -0.7, 0.9]))
    framed = frame_object(views, away, votes=2)
    middle = true_surface().mesh[0]
    middle = 0.5 * (middle.min(axis=0) + middle.max(axis=0))
    # The object's middle projects to where the world's origin is now.
    seen = np.stack([truth.to_camera(i, middle[None])[0] for i in range(len(truth))])
    off = framed.t[:, :2] / framed.t[:, 2:] - seen[:, :2] / seen[:, 2:]
    assert np.abs(off).max() * 15 < 0.06


def test_a_lost_view_is_doubted_and_found_again():
    _, views, truth = capture()
    surface = true_surface()
    lost = turned(truth, 0.0)
    R, t = lost.R.copy(), lost.t.copy()
    R[4], t[4] = truth.R[9], truth.t[9]
    lost = Poses(R, t)
    assert np.flatnonzero(judge(views, lost, surface).doubtful()).tolist() == [4]
    assert not judge(views, truth, surface).doubtful().any()
    others = [i for i in range(len(views)) if i != 4]
    found = relocate(views, lost, 4, surface, others, BundleOptions(), seed=0)
    assert rotation_errors_deg(found, truth)[4] < 0.5
    assert np.array_equal(found.R[others], lost.R[others])
    assert judge(views, found, surface).confidence[4] > 0.8


def _cube(points: np.ndarray) -> np.ndarray:
    q = np.abs(points) - 0.5
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(axis=1), 0)


def _bottle(points: np.ndarray) -> np.ndarray:
    return np.maximum(
        np.linalg.norm(points[:, :2], axis=1) - 0.3 - 0.1 * np.sin(4 * points[:, 2]), np.abs(points[:, 2]) - 0.7
    )


@pytest.mark.parametrize("shape", ["sphere", "cube", "bottle"])
def test_shapes_that_leave_poses_open_are_named(shape):
    from pmni_nerfstudio.registration.surface.sdf_grid import Surface

    points = lattice(65)
    sdf = {"sphere": np.linalg.norm(points, axis=1) - 0.6, "cube": _cube(points), "bottle": _bottle(points)}[shape]
    symmetry = find_symmetry(Surface(sdf.reshape(65, 65, 65).astype(np.float32)))
    assert symmetry is not None
    assert "onto itself" in symmetry.describe()
    if shape == "bottle":
        assert abs(symmetry.axis[2]) > 0.99
        assert symmetry.continuous


@pytest.mark.parametrize("shape", ["blob", "figure", "bracket", "knot"])
def test_other_shapes_are_not(shape):
    assert find_symmetry(true_surface(shape)) is None

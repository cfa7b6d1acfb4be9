# SPDX-License-Identifier: Apache-2.0
"""Metrics of shapes, poses and normals whose errors are known in closed form."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import trimesh
from helpers.evaluation import C2W, HEIGHT, WIDTH, K, ball, joined, random_similarity
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.evaluation.mesh_statistics import mesh_statistics
from pmni_nerfstudio.evaluation.metrics import SurfaceScore, object_radius, score_normals, score_poses, score_surface
from pmni_nerfstudio.geometry.cameras import pixel_rays
from pmni_nerfstudio.geometry.normals import angular_error_deg
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.synth import SynthConfig, make_scene
from pmni_nerfstudio.synth.rig import intrinsics
from pmni_nerfstudio.synth.shapes import SHAPES
from pmni_nerfstudio.synth.surface import surface_mesh


def surface_score(
    mesh: trimesh.Trimesh, truth: trimesh.Trimesh, threshold: float = 0.01, masks: np.ndarray | None = None
) -> SurfaceScore:
    out = score_surface(mesh, truth, K, C2W, WIDTH, HEIGHT, threshold, masks)
    assert out is not None
    return out


@pytest.mark.parametrize("gap", [0.02, -0.03])
def test_distance_of_concentric_spheres_is_the_difference_of_radii(gap: float):
    found = surface_score(ball(0.7 + gap), ball(0.7))
    assert found.accuracy == pytest.approx(abs(gap), abs=3e-4)
    assert found.completeness == pytest.approx(abs(gap), abs=3e-4)
    assert found.chamfer == pytest.approx(abs(gap), abs=3e-4)
    assert found.chamfer_pct == pytest.approx(100 * found.chamfer / 1.4, rel=1e-6)


def test_fscore_switches_at_the_distance_of_concentric_spheres():
    mesh, true = ball(0.72), ball(0.7)  # 1.43% of the diameter apart
    assert surface_score(mesh, true, 0.019).fscore == 0
    found = surface_score(mesh, true, 0.021)
    assert found.fscore == 1 and found.threshold == 0.021
    assert found.fscore_1pct == 0 and surface_score(ball(0.713), true).fscore_1pct == 1


def test_equal_meshes_have_zero_distance():
    found = surface_score(ball(0.7), ball(0.7))
    assert found.chamfer < 1e-6 and found.fscore == 1


def test_hidden_surface_is_ignored():
    true = ball(0.7)
    assert surface_score(joined(ball(0.7), ball(0.3)), true).chamfer < 1e-6


def test_a_floater_is_penalized_in_proportion_to_its_pixels():
    true, floater = ball(0.5), ball(0.1, (0.0, 0.0, 0.8))
    found = surface_score(joined(true, floater), true, 0.01)
    pixels = [len(RayCaster(m).visible_points(K, C2W, WIDTH, HEIGHT)) for m in (true, floater)]
    both = len(RayCaster(joined(true, floater)).visible_points(K, C2W, WIDTH, HEIGHT))
    assert both == sum(pixels)  # neither hides the other
    precision = pixels[0] / both
    assert found.fscore == pytest.approx(2 * precision / (precision + 1), rel=1e-6)
    # the floater's visible half is at a distance of 0.2 to 0.4 from the sphere
    assert 0.2 < found.accuracy * both / pixels[1] < 0.4
    assert found.completeness < 1e-6


def test_masked_rays_ignore_floaters():
    true, floater = ball(0.5), ball(0.1, (0.0, 0.0, 0.8))
    masks = np.zeros((len(C2W), HEIGHT, WIDTH), dtype=bool)
    for view in range(8):
        masks[view] = np.isfinite(RayCaster(true).cast(*pixel_rays(K, C2W[view], WIDTH, HEIGHT)).distance).reshape(
            HEIGHT, WIDTH
        )
    assert surface_score(joined(true, floater), true, masks=masks).chamfer < 1e-6
    assert surface_score(joined(true, floater), true).chamfer > 1e-3


def test_intrinsics_may_differ_between_views():
    wide = intrinsics(WIDTH, HEIGHT, 22.0)
    Ks = np.stack([K, wide] * 4)
    rays = RayCaster(ball(0.5))
    found = rays.visible_points(Ks, C2W, WIDTH, HEIGHT)
    one_by_one = [rays.visible_points(k, pose[None], WIDTH, HEIGHT) for k, pose in zip(Ks, C2W)]
    np.testing.assert_array_equal(found, np.concatenate(one_by_one))
    assert len(one_by_one[0]) != len(one_by_one[1])


def test_visible_points_match_the_depth_maps_of_the_scene():
    config = SynthConfig(shape="vase", views=4, width=WIDTH, height=HEIGHT, jitter=1.0)
    scene = make_scene(config)
    points = RayCaster(surface_mesh(SHAPES["vase"], 128)).visible_points(scene.K, scene.c2w[:1], WIDTH, HEIGHT)
    w2c = np.linalg.inv(scene.c2w[0])
    camera = points @ w2c[:3, :3].T + w2c[:3, 3]
    pixels = camera @ scene.K.T
    u, v = np.rint(pixels[:, 0] / pixels[:, 2]).astype(int), np.rint(pixels[:, 1] / pixels[:, 2]).astype(int)
    np.testing.assert_allclose(pixels[:, 0] / pixels[:, 2], u, atol=1e-3)
    difference = camera[:, 2] - scene.depth[0][v, u]
    assert np.nanmedian(np.abs(difference)) < 1e-3 and len(points) == pytest.approx(scene.masks[0].sum(), rel=0.02)


def test_a_result_out_of_view_has_no_score():
    assert score_surface(ball(0.1, (50.0, 0.0, 0.0)), ball(0.7), K, C2W, WIDTH, HEIGHT, 0.01) is None
    with pytest.raises(ValueError, match="no camera"):
        score_surface(ball(0.7), ball(0.1, (50.0, 0.0, 0.0)), K, C2W, WIDTH, HEIGHT, 0.01)


def test_object_radius_of_a_box():
    assert object_radius(trimesh.creation.box(extents=(6.0, 2.0, 3.0))) == pytest.approx(3.5)


def test_known_pose_errors_are_measured():
    angles = np.linspace(0.2, 1.6, 8)
    noisy = C2W.copy()
    axes = np.random.default_rng(0).standard_normal((8, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    noisy[:, :3, :3] = C2W[:, :3, :3] @ Rotation.from_rotvec(np.radians(angles)[:, None] * axes).as_matrix()
    noisy[:, :3, 3] += 0.03 * axes
    found = score_poses(noisy, C2W, radius=0.6)
    assert found.rot_deg == pytest.approx(0.9)
    assert found.rot_deg_max == pytest.approx(1.6)
    assert found.views_under_1deg == 4 / 8
    assert found.position == pytest.approx(0.03) and found.position_pct == pytest.approx(5.0)
    assert found.ate == pytest.approx(0.03)
    np.testing.assert_allclose(found.rot_deg_views, angles, atol=1e-6)
    np.testing.assert_allclose(found.position_views, 0.03, atol=1e-9)


def test_relative_pose_error_ignores_a_common_motion_and_measures_drift():
    """A motion of all cameras together leaves relative poses unchanged; a drift adds the same error to each pair."""
    common = np.eye(4)
    common[:3, :3] = Rotation.from_rotvec(np.radians([0.0, 3.0, 0.0])).as_matrix()
    common[:3, 3] = 0.1, 0.2, 0.3
    found = score_poses(common @ C2W, C2W, radius=1.0)
    assert found.rpe_rot_deg < 1e-5 and found.rpe_position < 1e-9 and found.rot_deg == pytest.approx(3.0)
    drift = C2W.copy()
    drift[:, :3, 3] += 0.01 * np.arange(8)[:, None] * np.array([1.0, 0.0, 0.0])
    found = score_poses(drift, C2W, radius=1.0)
    assert found.rpe_position == pytest.approx(0.01) and found.rpe_rot_deg < 1e-5
    assert found.ate == pytest.approx(0.01 * np.sqrt(np.square(np.arange(8)).mean()))


def test_equal_poses_have_no_error():
    found = score_poses(C2W, C2W, radius=0.6)
    assert found.rot_deg_max < 1e-5 and found.position_pct == 0 and found.views_under_1deg == 1


def test_transformed_poses_see_transformed_points_at_the_same_pixels():
    similarity = random_similarity(1, 70.0, 3.0, 5.0)
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 3))
    moved = points @ similarity[:3, :3].T + similarity[:3, 3]
    poses = transform_poses(similarity, C2W)
    np.testing.assert_allclose(poses[:, :3, :3] @ np.swapaxes(poses[:, :3, :3], 1, 2) - np.eye(3), 0, atol=1e-12)
    for before, after in zip(C2W, poses):
        seen = (points - before[:3, 3]) @ before[:3, :3]
        seen_moved = (moved - after[:3, 3]) @ after[:3, :3]
        np.testing.assert_allclose(seen_moved, 3.0 * seen, rtol=1e-9)


def test_known_angular_errors_are_measured():
    rng = np.random.default_rng(0)
    n = rng.standard_normal((6, 3))
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    across = np.cross(n, rng.standard_normal((6, 3)))
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    angles = np.array([0.0, 1e-5, 0.3, 45.0, 90.0, 180.0])
    rotated = Rotation.from_rotvec(np.radians(angles)[:, None] * across).apply(n)
    np.testing.assert_allclose(angular_error_deg(3 * rotated, n), angles, atol=1e-9)


def test_normal_errors_are_averaged_over_pixels_of_mask_and_surface():
    true = np.zeros((2, 2, 3)) + [0.0, 0.0, -1.0]
    rendered = np.array([[[0.0, 0.0, -1.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0], [1.0, 0.0, -1.0]]], dtype=np.float32)
    np.testing.assert_allclose(angular_error_deg(rendered, true), [[0, 90], [180, 45]], atol=1e-9)
    found = score_normals(rendered, true, np.array([[True, True], [False, True]]))
    assert found.mae_deg == pytest.approx(22.5) and found.median_deg == pytest.approx(22.5) and found.pixels == 2
    assert found.mask_iou == pytest.approx(2 / 4)
    nothing = score_normals(np.zeros_like(rendered), true, np.ones((2, 2), dtype=bool))
    assert nothing.mae_deg == 180 and nothing.mask_iou == 0 and nothing.pixels == 0


def test_holes_of_the_reference_are_not_compared():
    """A pixel without a reference normal counts for the silhouette alone."""
    true = np.zeros((2, 2, 3)) + [0.0, 0.0, -1.0]
    true[0, 0] = 0
    rendered = np.array([[[0.0, 0.0, -1.0], [1.0, 0.0, -1.0]], [[0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]], np.float32)
    found = score_normals(rendered, true, np.ones((2, 2), dtype=bool))
    assert found.pixels == 2 and found.mae_deg == pytest.approx(22.5)
    assert found.mask_iou == pytest.approx(3 / 4)
    nothing = score_normals(rendered, np.zeros_like(true), np.ones((2, 2), dtype=bool))
    assert nothing.mae_deg == 180 and nothing.mask_iou == pytest.approx(3 / 4)


def test_mesh_statistics():
    two = joined(ball(0.2), ball(0.3, (1.0, 0.0, 0.0)))
    statistics = mesh_statistics(two)
    assert (statistics.faces, statistics.components, statistics.watertight) == (2 * len(ball(0.2).faces), 2, True)
    soup = trimesh.Trimesh(two.triangles.reshape(-1, 3), np.arange(3 * len(two.faces)).reshape(-1, 3), process=False)
    for name, value in asdict(mesh_statistics(soup)).items():
        assert value == pytest.approx(getattr(statistics, name), rel=1e-5), name
    assert statistics.self_intersections == 0
    assert statistics.area == pytest.approx(4 * np.pi * (0.2**2 + 0.3**2), rel=2e-3)
    assert statistics.volume == pytest.approx(4 / 3 * np.pi * (0.2**3 + 0.3**3), rel=3e-3)
    assert mesh_statistics(ball(0.2)).mean_curvature == pytest.approx(1 / 0.2, rel=2e-3)
    crossing = mesh_statistics(joined(ball(0.2), ball(0.2, (0.1, 0.0, 0.0))))
    assert crossing.self_intersections is not None and crossing.self_intersections > 100
    opened = ball(0.2)
    opened.update_faces(np.arange(len(opened.faces)) > 0)
    assert not mesh_statistics(opened).watertight and mesh_statistics(opened).volume is None

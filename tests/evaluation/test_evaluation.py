# SPDX-License-Identifier: Apache-2.0
"""Scores of shapes whose scores are known, alignment by known similarities, and the picture's geometry."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.commands.eval import EvalCommand
from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.data.camera_files import write_cameras
from pmni_nerfstudio.data.images import read_normals, write_exr
from pmni_nerfstudio.data.result_files import read_mesh, read_poses
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation import picture
from pmni_nerfstudio.evaluation.evaluate import known_normals, view_poses
from pmni_nerfstudio.evaluation.ground_truth import Truth, read_truth
from pmni_nerfstudio.evaluation.mesh_statistics import mesh_facts
from pmni_nerfstudio.evaluation.metrics import object_radius, score_normals, score_poses, score_surface
from pmni_nerfstudio.evaluation.picture import PictureView, comparison_picture, shaded_view
from pmni_nerfstudio.evaluation.result import Result
from pmni_nerfstudio.evaluation.score import score
from pmni_nerfstudio.geometry.cameras import pixel_rays
from pmni_nerfstudio.geometry.normals import angular_error_deg, normals_to_rgb
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.synth import SynthConfig, make_scene
from pmni_nerfstudio.synth.rig import intrinsics, ring
from pmni_nerfstudio.synth.shapes import SHAPES
from pmni_nerfstudio.synth.surface import surface_mesh

WIDTH, HEIGHT = 64, 48
K = intrinsics(WIDTH, HEIGHT, 15.0)
C2W = ring(8, 25.0, 15.0, 1.0, False, np.random.default_rng(0))
EVERYWHERE = np.ones((8, HEIGHT, WIDTH), dtype=bool)


def ball(radius: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    mesh.apply_translation(centre)
    return mesh


def joined(*meshes: trimesh.Trimesh) -> trimesh.Trimesh:
    first = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    faces = [m.faces + offset for m, offset in zip(meshes, first)]
    return trimesh.Trimesh(np.concatenate([m.vertices for m in meshes]), np.concatenate(faces), process=False)


def surface_score(mesh: trimesh.Trimesh, truth: trimesh.Trimesh, threshold: float = 0.01, masks=None):
    out = score_surface(mesh, truth, K, C2W, WIDTH, HEIGHT, threshold, masks)
    assert out is not None
    return out


def random_similarity(seed: int, turn_deg: float, scale: float, shift: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    axis = rng.standard_normal(3)
    out = np.eye(4)
    turn = Rotation.from_rotvec(np.radians(turn_deg) * axis / np.linalg.norm(axis))
    out[:3, :3] = scale * turn.as_matrix()
    out[:3, 3] = shift * rng.standard_normal(3)
    return out


@pytest.fixture(scope="module")
def truth() -> Truth:
    world_from_unit = random_similarity(3, 30.0, 55.0, 20.0)
    mesh = surface_mesh(SHAPES["figure"], resolution=64)
    return Truth(mesh, K, C2W, world_from_unit, EVERYWHERE)


def result_of(truth: Truth, similarity: np.ndarray) -> tuple[trimesh.Trimesh, np.ndarray]:
    """The true mesh and poses in the data's world, taken off by a similarity there."""
    off = similarity @ truth.world_from_unit
    return truth.mesh.copy().apply_transform(off), transform_poses(off, truth.c2w)


# ---- surfaces


@pytest.mark.parametrize("gap", [0.02, -0.03])
def test_concentric_spheres_are_their_radii_apart(gap: float):
    found = surface_score(ball(0.7 + gap), ball(0.7))
    assert found.accuracy == pytest.approx(abs(gap), abs=3e-4)
    assert found.completeness == pytest.approx(abs(gap), abs=3e-4)
    assert found.chamfer == pytest.approx(abs(gap), abs=3e-4)
    assert found.chamfer_pct == pytest.approx(100 * found.chamfer / 1.4, rel=1e-6)


def test_fscore_is_all_or_nothing_either_side_of_the_gap():
    mesh, true = ball(0.72), ball(0.7)  # 1.43% of the diameter apart
    assert surface_score(mesh, true, 0.019).fscore == 0
    found = surface_score(mesh, true, 0.021)
    assert found.fscore == 1 and found.threshold == 0.021
    assert found.fscore_1pct == 0 and surface_score(ball(0.713), true).fscore_1pct == 1


def test_equal_meshes_are_no_distance_apart():
    found = surface_score(ball(0.7), ball(0.7))
    assert found.chamfer < 1e-6 and found.fscore == 1


def test_only_what_the_cameras_see_counts():
    true = ball(0.7)
    assert surface_score(joined(ball(0.7), ball(0.3)), true).chamfer < 1e-6


def test_a_piece_beside_the_object_costs_by_its_pixels():
    true, floater = ball(0.5), ball(0.1, (0.0, 0.0, 0.8))
    found = surface_score(joined(true, floater), true, 0.01)
    pixels = [len(RayCaster(m).visible_points(K, C2W, WIDTH, HEIGHT)) for m in (true, floater)]
    both = len(RayCaster(joined(true, floater)).visible_points(K, C2W, WIDTH, HEIGHT))
    assert both == sum(pixels)  # neither hides the other
    precision = pixels[0] / both
    assert found.fscore == pytest.approx(2 * precision / (precision + 1), rel=1e-6)
    # the floater's visible half is .2 to .4 from the sphere
    assert 0.2 < found.accuracy * both / pixels[1] < 0.4
    assert found.completeness < 1e-6


def test_rays_of_the_masks_alone_do_not_see_what_floats_beside():
    true, floater = ball(0.5), ball(0.1, (0.0, 0.0, 0.8))
    masks = np.zeros_like(EVERYWHERE)
    for view in range(8):
        masks[view] = np.isfinite(RayCaster(true).cast(*pixel_rays(K, C2W[view], WIDTH, HEIGHT)).distance).reshape(
            HEIGHT, WIDTH
        )
    assert surface_score(joined(true, floater), true, masks=masks).chamfer < 1e-6
    assert surface_score(joined(true, floater), true).chamfer > 1e-3


def test_every_view_may_have_its_own_pinhole():
    wide = intrinsics(WIDTH, HEIGHT, 22.0)
    Ks = np.stack([K, wide] * 4)
    rays = RayCaster(ball(0.5))
    found = rays.visible_points(Ks, C2W, WIDTH, HEIGHT)
    one_by_one = [rays.visible_points(k, pose[None], WIDTH, HEIGHT) for k, pose in zip(Ks, C2W)]
    np.testing.assert_array_equal(found, np.concatenate(one_by_one))
    assert len(one_by_one[0]) != len(one_by_one[1])


def test_visible_points_are_the_scene_s_own_depth():
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


def test_nothing_in_view_is_no_score():
    assert score_surface(ball(0.1, (50.0, 0.0, 0.0)), ball(0.7), K, C2W, WIDTH, HEIGHT, 0.01) is None
    with pytest.raises(ValueError, match="no camera"):
        score_surface(ball(0.7), ball(0.1, (50.0, 0.0, 0.0)), K, C2W, WIDTH, HEIGHT, 0.01)


def test_radius_is_that_of_the_sphere_about_the_box():
    assert object_radius(trimesh.creation.box(extents=(6.0, 2.0, 3.0))) == pytest.approx(3.5)


# ---- poses


def test_pose_errors_are_those_put_in():
    angles = np.linspace(0.2, 1.6, 8)
    off = C2W.copy()
    axes = np.random.default_rng(0).standard_normal((8, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    off[:, :3, :3] = C2W[:, :3, :3] @ Rotation.from_rotvec(np.radians(angles)[:, None] * axes).as_matrix()
    off[:, :3, 3] += 0.03 * axes
    found = score_poses(off, C2W, radius=0.6)
    assert found.rot_deg == pytest.approx(0.9)
    assert found.rot_deg_max == pytest.approx(1.6)
    assert found.views_under_1deg == 4 / 8
    assert found.position == pytest.approx(0.03) and found.position_pct == pytest.approx(5.0)
    assert found.ate == pytest.approx(0.03)
    np.testing.assert_allclose(found.rot_deg_views, angles, atol=1e-6)
    np.testing.assert_allclose(found.position_views, 0.03, atol=1e-9)


def test_a_common_motion_is_no_relative_error_and_a_drift_is():
    """Views turned alike, each about itself by the same angle, keep their relative poses only about one axis."""
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


# ---- alignment


@pytest.mark.parametrize("seed", range(4))
def test_any_similarity_is_recovered_with_poses(truth: Truth, seed: int):
    similarity = random_similarity(seed, 40.0 * seed, (0.4, 1.0, 1.7, 5.0)[seed], 100.0)
    mesh, c2w = result_of(truth, similarity)
    found = score(mesh, c2w, truth, align=True)
    assert found is not None and found.poses is not None
    assert found.surface.chamfer_pct < 2e-4
    assert found.poses.rot_deg_max < 1e-4
    assert found.poses.position_pct < 0.02
    assert found.scale * (0.4, 1.0, 1.7, 5.0)[seed] == pytest.approx(1.0, abs=1e-5)
    assert found.surface.fscore == 1


@pytest.mark.parametrize("scale", [0.8, 1.3])
def test_positions_are_scored_exactly_from_fifteen_radii(truth: Truth, scale: float):
    """A scale off by 1e-4 moves cameras at 15 radii by .16% of the object's radius: the fit has to be better."""
    similarity = random_similarity(4, 25.0, scale, 10.0)
    mesh, c2w = result_of(truth, similarity)
    noise = 0.004 * np.random.default_rng(0).standard_normal((8, 3))
    noise -= noise.mean(0)
    stray = transform_poses(
        similarity @ truth.world_from_unit, C2W + np.pad(noise[..., None], ((0, 0), (0, 1), (3, 0)))
    )
    np.testing.assert_allclose(stray[:, :3, :3], c2w[:, :3, :3])
    found = score(mesh, stray, truth, align=True)
    assert found is not None and found.poses is not None
    put_in = 100 * np.linalg.norm(noise, axis=1).mean() / object_radius(truth.mesh)
    assert found.poses.position_pct == pytest.approx(put_in, rel=0.01)


def test_a_near_similarity_is_recovered_from_the_surface_alone(truth: Truth):
    about_object = np.eye(4)
    about_object[:3, 3] = -truth.world_from_unit[:3, 3]
    similarity = np.linalg.inv(about_object) @ random_similarity(5, 6.0, 1.07, 2.0) @ about_object
    mesh, _ = result_of(truth, similarity)
    found = score(mesh, None, truth, align=True)
    assert found is not None and found.poses is None
    assert found.surface.chamfer_pct < 2e-4
    assert found.scale == pytest.approx(1 / 1.07, abs=1e-5)


def test_poses_hold_the_rotation(truth: Truth):
    """A surface turned against its own poses is wrong, and must not be turned back."""
    mesh, c2w = result_of(truth, np.eye(4))
    about_object = np.eye(4)
    about_object[:3, 3] = -truth.world_from_unit[:3, 3]
    mesh.apply_transform(np.linalg.inv(about_object) @ random_similarity(2, 4.0, 1.0, 0.0) @ about_object)
    held, free = score(mesh, c2w, truth, align=True), score(mesh, None, truth, align=True)
    assert held is not None and free is not None
    assert free.surface.chamfer_pct < 2e-4
    assert held.surface.chamfer_pct > 0.2


def test_what_nobody_sees_does_not_pull_the_alignment():
    blob = surface_mesh(SHAPES["blob"], 64)
    truth = Truth(blob, K, C2W, np.eye(4), EVERYWHERE)
    core = ball(0.25, (0.0, 0.1, -0.1))
    assert (SHAPES["blob"].sdf(torch.from_numpy(core.vertices.copy())) < -0.1).all() and core.area > 0.1 * blob.area
    similarity = random_similarity(1, 20.0, 1.5, 30.0)
    result = joined(blob, core).apply_transform(similarity)
    found = score(result, transform_poses(similarity, C2W), truth, align=True)
    assert found is not None and found.scale == pytest.approx(1 / 1.5, rel=1e-5)


def test_without_alignment_a_wrong_scale_shows(truth: Truth):
    sphere = Truth(ball(0.7), K, C2W, truth.world_from_unit, EVERYWHERE)
    grown = ball(0.735).apply_transform(truth.world_from_unit)
    found = score(grown, None, sphere, align=False)
    assert found is not None
    assert found.surface.chamfer == pytest.approx(0.035 * 55, rel=0.02)  # in the data's units
    assert found.surface.chamfer_pct == pytest.approx(2.5, rel=0.02)
    assert found.scale == 1


def test_poses_of_one_place_tell_no_scale(truth: Truth):
    mesh, c2w = result_of(truth, np.eye(4))
    c2w[:, :3, 3] = c2w[0, :3, 3]
    with pytest.raises(PmniError, match="one place"):
        score(mesh, c2w, truth, align=True)


# ---- normals


def test_angular_errors_are_those_put_in():
    rng = np.random.default_rng(0)
    n = rng.standard_normal((6, 3))
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    across = np.cross(n, rng.standard_normal((6, 3)))
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    angles = np.array([0.0, 1e-5, 0.3, 45.0, 90.0, 180.0])
    turned = Rotation.from_rotvec(np.radians(angles)[:, None] * across).apply(n)
    np.testing.assert_allclose(angular_error_deg(3 * turned, n), angles, atol=1e-9)


def test_means_are_over_pixels_of_both_mask_and_surface():
    true = np.zeros((2, 2, 3)) + [0.0, 0.0, -1.0]
    rendered = np.array([[[0.0, 0.0, -1.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0], [1.0, 0.0, -1.0]]], dtype=np.float32)
    np.testing.assert_allclose(angular_error_deg(rendered, true), [[0, 90], [180, 45]], atol=1e-9)
    found = score_normals(rendered, true, np.array([[True, True], [False, True]]))
    assert found.mae_deg == pytest.approx(22.5) and found.median_deg == pytest.approx(22.5) and found.pixels == 2
    assert found.mask_iou == pytest.approx(2 / 4)
    nothing = score_normals(np.zeros_like(rendered), true, np.ones((2, 2), dtype=bool))
    assert nothing.mae_deg == 180 and nothing.mask_iou == 0 and nothing.pixels == 0


# ---- meshes and files


def test_mesh_facts():
    two = joined(ball(0.2), ball(0.3, (1.0, 0.0, 0.0)))
    facts = mesh_facts(two)
    assert (facts.faces, facts.components, facts.watertight) == (2 * len(ball(0.2).faces), 2, True)
    soup = trimesh.Trimesh(two.triangles.reshape(-1, 3), np.arange(3 * len(two.faces)).reshape(-1, 3), process=False)
    for name, value in asdict(mesh_facts(soup)).items():
        assert value == pytest.approx(getattr(facts, name), rel=1e-5), name
    assert facts.self_intersections == 0
    assert facts.area == pytest.approx(4 * np.pi * (0.2**2 + 0.3**2), rel=2e-3)
    assert facts.volume == pytest.approx(4 / 3 * np.pi * (0.2**3 + 0.3**3), rel=3e-3)
    assert mesh_facts(ball(0.2)).mean_curvature == pytest.approx(1 / 0.2, rel=2e-3)
    crossing = mesh_facts(joined(ball(0.2), ball(0.2, (0.1, 0.0, 0.0))))
    assert crossing.self_intersections is not None and crossing.self_intersections > 100
    opened = ball(0.2)
    opened.update_faces(np.arange(len(opened.faces)) > 0)
    assert not mesh_facts(opened).watertight and mesh_facts(opened).volume is None


def test_poses_are_read_alike_from_every_format(tmp_path: Path, truth: Truth):
    world = transform_poses(truth.world_from_unit, truth.c2w)
    np.save(tmp_path / "full.npy", world)
    np.save(tmp_path / "short.npy", world[:, :3])
    # any scale_mat: the poses in the data's world are the same
    other = random_similarity(8, 50.0, 20.0, 3.0)
    c2w = transform_poses(np.linalg.inv(other) @ truth.world_from_unit, truth.c2w)
    write_cameras(tmp_path / "cameras.npz", np.broadcast_to(K, (8, 3, 3)), c2w, other)
    for name in ("full.npy", "short.npy", "cameras.npz"):
        np.testing.assert_allclose(read_poses(tmp_path / name, 8), world, atol=1e-7)


def bad_pose_files(folder: Path) -> dict[str, Path]:
    np.save(folder / "few.npy", C2W[:3])
    np.save(folder / "flat.npy", C2W.reshape(8, 16))
    skew, lost = C2W.copy(), C2W.copy()
    skew[2, :3, :3] *= 1.1
    lost[5, 0, 3] = np.nan
    np.save(folder / "skew.npy", skew)
    np.save(folder / "lost.npy", lost)
    (folder / "junk.npy").write_bytes(b"junk")
    (folder / "poses.txt").write_text("1 0 0 0")
    return {
        "3 poses for the truth's 8 views": folder / "few.npy",
        "shape": folder / "flat.npy",
        "pose 2": folder / "skew.npy",
        "pose 5": folder / "lost.npy",
        "can't be read": folder / "junk.npy",
        ".npy or .npz": folder / "poses.txt",
        "no such file": folder / "none.npy",
    }


def test_bad_poses_are_refused_with_one_line(tmp_path: Path):
    for message, path in bad_pose_files(tmp_path).items():
        with pytest.raises(PmniError, match=message) as error:
            read_poses(path, 8)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_bad_meshes_are_refused_with_one_line(tmp_path: Path):
    trimesh.PointCloud(C2W[:, :3, 3]).export(tmp_path / "points.ply")
    broken = ball(0.2)
    broken.vertices[3] = np.nan
    broken.export(tmp_path / "broken.ply")
    (tmp_path / "junk.ply").write_bytes(b"junk")
    for name, message in {
        "points.ply": "no faces",
        "broken.ply": "not finite",
        "junk.ply": "can't be read",
        "none.ply": "no such mesh",
    }.items():
        with pytest.raises(PmniError, match=message) as error:
            read_mesh(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["ply", "obj", "stl", "glb"])
def test_meshes_are_read_from_every_format(tmp_path: Path, suffix: str):
    mesh = ball(0.3, (0.1, 0.2, 0.3))
    mesh.export(tmp_path / f"mesh.{suffix}")
    read = read_mesh(tmp_path / f"mesh.{suffix}")
    np.testing.assert_allclose(read.bounds, mesh.bounds, atol=1e-6)
    for name, value in asdict(mesh_facts(read)).items():
        assert value == pytest.approx(asdict(mesh_facts(mesh))[name], rel=1e-5), name


# ---- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scene")
    SynthCommand(out=out, shape="knot", views=4, width=WIDTH, height=HEIGHT, mesh_resolution=64).main()
    return out


def test_command_writes_what_it_measured(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    truth = read_truth(folder / "truth")
    np.save(tmp_path / "poses.npy", transform_poses(truth.world_from_unit, truth.c2w))
    EvalCommand(
        mesh=folder / "mesh_Gt.ply", data=folder, poses=tmp_path / "poses.npy", output_dir=tmp_path / "out"
    ).main()
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["surface"]["chamfer_pct"] < 1e-3 and found["surface"]["fscore"] == 1
    assert found["poses"]["rot_deg_max"] < 1e-4 and found["poses"]["views_under_1deg"] == 1
    assert found["mesh"]["watertight"] is True and found["mesh"]["components"] == 1
    # the true mesh, of 64 cells, seen from true poses: its normals are nearly the inputs
    assert found["normals"]["against"] == "inputs" and found["normals"]["mae_deg"] < 3
    assert found["normals"]["mask_iou"] > 0.95
    assert found["aligned"] is True and found["units"] == "mm" and found["scene"] == str(folder.resolve())
    np.testing.assert_allclose(found["similarity"], np.eye(4), atol=2e-3)
    rows = list(csv.DictReader((tmp_path / "out" / "views.csv").open()))
    assert [row["name"] for row in rows] == [view["name"] for view in found["views"]] and len(rows) == 4
    assert float(rows[2]["mae_deg"]) == pytest.approx(found["views"][2]["mae_deg"])
    for view in found["views"]:
        maps = tmp_path / "out" / "normal_camera_space" / f"{view['name']}.exr"
        assert (read_normals(maps) != 0).any()
    np.testing.assert_allclose(np.load(tmp_path / "out" / "poses.npy"), np.load(tmp_path / "poses.npy"), atol=1e-9)
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("Chamfer", "rotation error", "watertight", "mm", "input normals"))


def test_command_without_poses_or_alignment(folder: Path, tmp_path: Path):
    EvalCommand(mesh=folder / "mesh_Gt.ply", truth=folder / "truth", align=False, output_dir=tmp_path).main()
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["poses"] is None and found["similarity"] is None and found["surface"]["chamfer"] < 1e-3
    assert found["normals"] is None


def test_without_truth_normals_and_mesh_are_measured(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(folder, tmp_path / "scene")
    shutil.rmtree(tmp_path / "scene" / "truth")
    mesh = (tmp_path / "scene" / "mesh_Gt.ply").rename(tmp_path / "mesh.ply")
    EvalCommand(mesh=mesh, data=tmp_path / "scene", output_dir=tmp_path / "out").main()
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["surface"] is None and found["poses"] is None and not found["aligned"]
    assert found["normals"]["mae_deg"] < 30 and found["mesh"]["faces"] > 100  # from the rough cameras that it was given
    assert "No truth" in capsys.readouterr().out


def test_true_normals_are_turned_into_the_true_cameras(folder: Path, tmp_path: Path):
    """Of world-space normals: rough poses must not turn them."""
    scene_folder = tmp_path / "scene"
    shutil.copytree(folder, scene_folder)
    truth, scene = read_truth(folder / "truth"), read_scene(scene_folder)
    turned = scene.c2w.copy()
    turned[:, :3, :3] = turned[:, :3, :3] @ Rotation.from_euler("y", 2, degrees=True).as_matrix()
    write_cameras(scene_folder / "cameras_sphere.npz", scene.K, turned, scene.world_from_unit)
    world_turn = scene.world_from_unit[:3, :3] / np.cbrt(np.linalg.det(scene.world_from_unit[:3, :3]))
    (scene_folder / "normal_world_space_GT").mkdir()
    for name, normals, c2w in zip(scene.names, scene.normals.astype(np.float64), truth.c2w):
        world = normals @ (world_turn @ c2w[:3, :3]).T
        write_exr(scene_folder / "normal_world_space_GT" / f"{name}.exr", world.astype(np.float32))
    known, against = known_normals(read_scene(scene_folder), truth)
    assert against == "truth"
    errors = angular_error_deg(known[scene.masks], scene.normals[scene.masks])
    assert errors.mean() < 0.1


def test_views_held_out_stand_where_the_truth_has_them(folder: Path):
    """In the result's own world, which a similarity has taken away from the truth's."""
    truth, scene = read_truth(folder / "truth"), read_scene(folder)
    away = random_similarity(1, 20.0, 1.3, 4.0)
    true_world = transform_poses(truth.world_from_unit, truth.c2w)
    trained = np.array([True, False, True, True])
    poses = np.where(trained[:, None, None], transform_poses(away, true_world), np.eye(4))
    mesh = read_mesh(folder / "mesh_Gt.ply").apply_transform(away)
    result = Result(folder, mesh, poses, trained, False, "pmni", lambda at: iter(()))
    scores = score(mesh, poses[trained], truth, True, views=np.flatnonzero(trained))
    assert scores is not None and scores.poses is not None and len(scores.poses.rot_deg_views) == 3
    found = view_poses(result, scene, truth, scores)
    np.testing.assert_allclose(found, transform_poses(away, true_world), atol=2e-2)


def test_command_s_errors_are_one_line(folder: Path, tmp_path: Path):
    ball(0.1, (500.0, 0.0, 0.0)).export(tmp_path / "away.ply")
    shutil.copytree(folder / "truth", tmp_path / "broken")
    (tmp_path / "broken" / "truth.npz").write_bytes(b"junk")
    for message, options in {
        "sees this mesh": {"mesh": tmp_path / "away.ply", "truth": folder / "truth", "align": False},
        "truth.npz: is missing": {"mesh": folder / "mesh_Gt.ply", "truth": tmp_path},
        "truth.npz: can't be read": {"mesh": folder / "mesh_Gt.ply", "truth": tmp_path / "broken"},
        "threshold": {"mesh": folder / "mesh_Gt.ply", "truth": folder / "truth", "threshold": 0.0},
        "one of them": {"mesh": folder / "mesh_Gt.ply", "load_config": tmp_path / "config.yml"},
        "compared with what": {"mesh": folder / "mesh_Gt.ply"},
        "drop --data": {"load_config": tmp_path / "config.yml", "data": folder},
        "config.yml: does not exist": {"load_config": tmp_path / "config.yml"},
    }.items():
        with pytest.raises(PmniError, match=message) as error:
            EvalCommand(**options).main()
        assert "\n" not in str(error.value)


# ---- the picture


def test_a_normal_to_the_viewer_is_the_field_s_blue():
    normals = np.array([[[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]]])
    mask = np.array([[True, True, True, False]])
    expected = [[[0.5, 0.5, 1.0], [1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [1.0, 1.0, 1.0]]]
    np.testing.assert_allclose(normals_to_rgb(normals, mask[..., None]), expected)


def test_shaded_view_shows_the_mesh_where_the_camera_has_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(picture, "CLAY", np.zeros(3))  # black on white: what is dark is covered
    centre, radius = np.array([0.35, -0.2, 0.3]), 0.3
    mesh = ball(radius, tuple(centre))
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    for c2w in C2W:
        image = shaded_view(mesh, RayCaster(mesh), K, c2w, (HEIGHT, WIDTH))
        assert image.shape == (HEIGHT, WIDTH, 3)
        covered = 1 - image.mean(-1)
        seen = K @ (c2w[:3, :3].T @ (centre - c2w[:3, 3]))
        assert (u * covered).sum() / covered.sum() == pytest.approx(seen[0] / seen[2], abs=0.05)
        assert (v * covered).sum() / covered.sum() == pytest.approx(seen[1] / seen[2], abs=0.05)
        assert covered.sum() == pytest.approx(np.pi * (K[0, 0] * radius / seen[2]) ** 2, rel=0.02)


def test_light_falls_from_the_camera_s_upper_left():
    mesh = ball(0.6)
    image = shaded_view(mesh, RayCaster(mesh), K, C2W[0], (HEIGHT, WIDTH)).mean(-1)
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    on, right, down = image < 0.999, u - WIDTH / 2, v - HEIGHT / 2
    assert np.corrcoef(image[on], right[on])[0, 1] < -0.1 and np.corrcoef(image[on], down[on])[0, 1] < -0.3


def test_picture_is_written(tmp_path: Path):
    scene = make_scene(SynthConfig(shape="blob", views=3, width=WIDTH, height=HEIGHT))
    mesh = surface_mesh(SHAPES["blob"], 64)
    views = [
        PictureView(input=normals, rendered=np.roll(normals, 1, axis=1), mask=mask)
        for normals, mask in zip(scene.normals, scene.masks)
    ]
    comparison_picture(tmp_path / "new" / "a.png", views, mesh, scene.c2w, scene.K, "title")
    image = cv2.imread(str(tmp_path / "new" / "a.png"))
    assert image is not None and image.std() > 10
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
    with pytest.raises(ValueError):
        comparison_picture(tmp_path / "b.png", views, mesh, scene.c2w[:2], scene.K, "a pose is missing")


def test_a_result_that_has_nothing_to_do_with_the_truth_is_scored_as_bad(truth: Truth):
    """Fitting its size to the surface would shrink it to a point, and so on without end."""
    rng = np.random.default_rng(0)
    soup = trimesh.Trimesh(rng.uniform(-1, 1, (6000, 3)), np.arange(6000).reshape(-1, 3), process=False)
    soup.apply_transform(truth.world_from_unit)
    found = score(soup, transform_poses(truth.world_from_unit, C2W), truth, align=True)
    assert found is not None and 0.3 < found.scale < 3.0
    assert found.surface.chamfer_pct > 5 and np.isfinite(found.surface.chamfer)

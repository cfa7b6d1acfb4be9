# SPDX-License-Identifier: Apache-2.0
"""`pmni eval` with meshes and poses from files: metrics, written files and error messages."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import trimesh
from helpers.evaluation import C2W, HEIGHT, WIDTH, K, ball, random_similarity
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.commands.eval import EvalCommand
from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.data.camera_files import write_cameras, write_intrinsics
from pmni_nerfstudio.data.images import read_normals, write_exr
from pmni_nerfstudio.data.result_files import read_mesh, read_poses
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.evaluate import reference_normals, rendering_poses
from pmni_nerfstudio.evaluation.geometry_scores import score_geometry
from pmni_nerfstudio.evaluation.ground_truth import read_ground_truth
from pmni_nerfstudio.evaluation.mesh_statistics import mesh_statistics
from pmni_nerfstudio.evaluation.reconstruction import Reconstruction
from pmni_nerfstudio.geometry.normals import angular_error_deg
from pmni_nerfstudio.geometry.transforms import transform_poses


def test_poses_are_read_from_every_format(tmp_path: Path):
    world_from_unit = random_similarity(3, 30.0, 55.0, 20.0)
    world = transform_poses(world_from_unit, C2W)
    np.save(tmp_path / "full.npy", world)
    np.save(tmp_path / "short.npy", world[:, :3])
    # poses in the data's world don't depend on scale_mat
    other = random_similarity(8, 50.0, 20.0, 3.0)
    c2w = transform_poses(np.linalg.inv(other) @ world_from_unit, C2W)
    write_cameras(tmp_path / "cameras.npz", np.broadcast_to(K, (8, 3, 3)), c2w, other)
    for name in ("full.npy", "short.npy", "cameras.npz"):
        np.testing.assert_allclose(read_poses(tmp_path / name, 8), world, atol=1e-7)


def invalid_pose_files(folder: Path) -> dict[str, Path]:
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
        "3 poses for 8 views of the ground truth": folder / "few.npy",
        "shape": folder / "flat.npy",
        "pose 2": folder / "skew.npy",
        "pose 5": folder / "lost.npy",
        "can't be read": folder / "junk.npy",
        ".npy or .npz": folder / "poses.txt",
        "no such file": folder / "none.npy",
    }


def test_invalid_poses_are_reported_in_one_line(tmp_path: Path):
    for message, path in invalid_pose_files(tmp_path).items():
        with pytest.raises(PmniError, match=message) as error:
            read_poses(path, 8)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_invalid_meshes_are_reported_in_one_line(tmp_path: Path):
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
    for name, value in asdict(mesh_statistics(read)).items():
        assert value == pytest.approx(asdict(mesh_statistics(mesh))[name], rel=1e-5), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scene")
    SynthCommand(out=out, shape="knot", views=4, width=WIDTH, height=HEIGHT, mesh_resolution=64).main()
    return out


def test_a_ground_truth_mesh_with_true_poses_has_no_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    capsys.readouterr()
    truth = read_ground_truth(folder / "truth")
    np.save(tmp_path / "poses.npy", transform_poses(truth.world_from_unit, truth.c2w))
    EvalCommand(
        mesh=folder / "mesh_Gt.ply", data=folder, poses=tmp_path / "poses.npy", output_dir=tmp_path / "out"
    ).main()
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["surface"]["chamfer_pct"] < 1e-3 and found["surface"]["fscore"] == 1
    assert found["poses"]["rot_deg_max"] < 1e-4 and found["poses"]["views_under_1deg"] == 1
    assert found["mesh"]["watertight"] is True and found["mesh"]["components"] == 1
    # the ground-truth mesh has a resolution of 64 cells: its normals differ slightly from the inputs
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


def test_a_mesh_is_evaluated_without_poses_and_alignment(folder: Path, tmp_path: Path):
    EvalCommand(mesh=folder / "mesh_Gt.ply", truth=folder / "truth", align=False, output_dir=tmp_path).main()
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["poses"] is None and found["similarity"] is None and found["surface"]["chamfer"] < 1e-3
    assert found["normals"] is None


def test_without_ground_truth_normals_and_mesh_are_evaluated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(folder, tmp_path / "scene")
    shutil.rmtree(tmp_path / "scene" / "truth")
    mesh = (tmp_path / "scene" / "mesh_Gt.ply").rename(tmp_path / "mesh.ply")
    EvalCommand(mesh=mesh, data=tmp_path / "scene", output_dir=tmp_path / "out").main()
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["surface"] is None and found["poses"] is None and not found["aligned"]
    assert found["normals"]["mae_deg"] < 30 and found["mesh"]["faces"] > 100  # rendered from the rough given poses
    assert "No ground truth" in capsys.readouterr().out


def test_world_space_normals_are_rotated_into_the_true_cameras(folder: Path, tmp_path: Path):
    """Rough given poses must not affect world-space ground-truth normals."""
    scene_folder = tmp_path / "scene"
    shutil.copytree(folder, scene_folder)
    truth, scene = read_ground_truth(folder / "truth"), read_scene(scene_folder)
    rough = scene.c2w.copy()
    rough[:, :3, :3] = rough[:, :3, :3] @ Rotation.from_euler("y", 2, degrees=True).as_matrix()
    write_cameras(scene_folder / "cameras_sphere.npz", scene.K, rough, scene.world_from_unit)
    world_rotation = scene.world_from_unit[:3, :3] / np.cbrt(np.linalg.det(scene.world_from_unit[:3, :3]))
    (scene_folder / "normal_world_space_GT").mkdir()
    for name, normals, c2w in zip(scene.names, scene.normals.astype(np.float64), truth.c2w):
        world = normals @ (world_rotation @ c2w[:3, :3]).T
        write_exr(scene_folder / "normal_world_space_GT" / f"{name}.exr", world.astype(np.float32))
    reference, against = reference_normals(read_scene(scene_folder), truth)
    assert against == "truth"
    errors = angular_error_deg(reference[scene.masks], scene.normals[scene.masks])
    assert errors.mean() < 0.1


def test_held_out_views_are_rendered_at_their_aligned_true_poses(folder: Path):
    """The result's world differs from that of the ground truth by a similarity."""
    truth, scene = read_ground_truth(folder / "truth"), read_scene(folder)
    similarity = random_similarity(1, 20.0, 1.3, 4.0)
    true_world = transform_poses(truth.world_from_unit, truth.c2w)
    trained = np.array([True, False, True, True])
    poses = np.where(trained[:, None, None], transform_poses(similarity, true_world), np.eye(4))
    mesh = read_mesh(folder / "mesh_Gt.ply").apply_transform(similarity)
    result = Reconstruction(folder, mesh, poses, trained, False, "pmni", lambda at: iter(()))
    scores = score_geometry(mesh, poses[trained], truth, True, views=np.flatnonzero(trained))
    assert scores is not None and scores.poses is not None and len(scores.poses.rot_deg_views) == 3
    found = rendering_poses(result, scene, truth, scores)
    np.testing.assert_allclose(found, transform_poses(similarity, true_world), atol=2e-2)


def test_errors_are_reported_in_one_line(folder: Path, tmp_path: Path):
    ball(0.1, (500.0, 0.0, 0.0)).export(tmp_path / "away.ply")
    shutil.copytree(folder / "truth", tmp_path / "broken")
    (tmp_path / "broken" / "truth.npz").write_bytes(b"junk")
    for message, options in {
        "sees this mesh": {"mesh": tmp_path / "away.ply", "truth": folder / "truth", "align": False},
        "truth.npz: is missing": {"mesh": folder / "mesh_Gt.ply", "truth": tmp_path},
        "truth.npz: can't be read": {"mesh": folder / "mesh_Gt.ply", "truth": tmp_path / "broken"},
        "threshold": {"mesh": folder / "mesh_Gt.ply", "truth": folder / "truth", "threshold": 0.0},
        "either a run": {"mesh": folder / "mesh_Gt.ply", "load_config": tmp_path / "config.yml"},
        "nothing to compare": {"mesh": folder / "mesh_Gt.ply"},
        "drop --poses": {"load_config": tmp_path / "config.yml", "poses": folder},
        "config.yml: does not exist": {"load_config": tmp_path / "config.yml"},
    }.items():
        with pytest.raises(PmniError, match=message) as error:
            EvalCommand(**options).main()
        assert "\n" not in str(error.value)


def test_units_of_scenes_with_and_without_a_scale(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Without poses there are no millimetres, unless ground truth gives a scale, to which the mesh is then brought."""
    scene = tmp_path / "scene"
    shutil.copytree(folder, scene)
    given = read_scene(scene)
    true = read_mesh(scene / "mesh_Gt.ply")
    truth = (scene / "truth").rename(tmp_path / "truth")
    (scene / "mesh_Gt.ply").unlink()
    (scene / "cameras_sphere.npz").unlink()
    write_intrinsics(scene / "intrinsics.json", given.K[0], given.width, given.height)
    poses = transform_poses(given.world_from_unit, given.c2w)
    poses[:, :3, 3] /= 10
    np.save(tmp_path / "poses.npy", poses)
    true.copy().apply_scale(0.1).export(tmp_path / "small.ply")
    files = {"mesh": tmp_path / "small.ply", "poses": tmp_path / "poses.npy", "data": scene}

    def mesh_of(out: str, **options) -> dict:
        EvalCommand(output_dir=tmp_path / out, **files, **options).main()
        record = json.loads((tmp_path / out / "metrics.json").read_text())
        return record["mesh"] | {"units": record["units"]}

    capsys.readouterr()
    alone = mesh_of("alone")
    assert alone["units"] == "object units" and alone["area"] == pytest.approx(true.area / 100, rel=1e-3)
    printed = capsys.readouterr().out
    assert "object units^2" in printed and "mm" not in printed
    assert mesh_of("named", units="cm")["units"] == "cm"
    scaled = mesh_of("scaled", truth=truth)
    assert scaled["units"] == "mm"
    assert scaled["area"] == pytest.approx(true.area, rel=0.01)
    assert scaled["volume"] == pytest.approx(true.volume, rel=0.01)
    assert scaled["mean_curvature"] == pytest.approx(mesh_statistics(true).mean_curvature, rel=0.01)


def test_wrong_paths_leave_no_folders_behind(tmp_path: Path):
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "new" / "out", tmp_path / "there"):
        with pytest.raises(PmniError, match="does not exist"):
            EvalCommand(load_config=tmp_path / "no.yml", output_dir=out).main()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]

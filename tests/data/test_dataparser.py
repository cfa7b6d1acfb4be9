# SPDX-License-Identifier: Apache-2.0
"""Data parser: splits, conventions, pose noise and errors."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
import tyro
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs

from pmni_nerfstudio.data import dataparser
from pmni_nerfstudio.data.dataparser import PmniDataParserConfig, pmni_data, unit_from_world
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.data.split_views import split_views_of
from pmni_nerfstudio.geometry.pose_noise import perturb_poses


@pytest.fixture
def outputs_of(monkeypatch: pytest.MonkeyPatch):
    """Factory of the outputs of a split for a scene in memory and settings of the configuration."""

    def outputs(scene: Scene, split: str = "train", **settings) -> DataparserOutputs:
        monkeypatch.setattr(dataparser, "read_scene", lambda *args: scene)
        return PmniDataParserConfig(**settings).setup().get_dataparser_outputs(split)

    return outputs


def rotation_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles (n,) between rotations (n, 3, 3)."""
    return np.rad2deg(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=(-2, -1)) / np.sqrt(8), 0, 1)))


def test_nerfstudio_cameras_project_to_the_same_pixels(sphere_scene, outputs_of):
    """Points project to the same pixel with K and w2c as with nerfstudio's cameras, whose pixel centers are at 0.5."""
    outputs = outputs_of(sphere_scene)
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (10, 3))
    cameras = outputs.cameras
    for i in range(sphere_scene.num_views):
        w2c = np.linalg.inv(sphere_scene.c2w[i])
        pixel = (points @ w2c[:3, :3].T + w2c[:3, 3]) @ sphere_scene.K[i].T
        pixel = pixel[:, :2] / pixel[:, 2:]
        opengl = np.linalg.inv(np.vstack([cameras.camera_to_worlds[i].double(), [0, 0, 0, 1]]))
        x, y, z = (points @ opengl[:3, :3].T + opengl[:3, 3]).T
        assert (z < 0).all()
        u = cameras.fx[i].item() * x / -z + cameras.cx[i].item()
        v = -cameras.fy[i].item() * y / -z + cameras.cy[i].item()
        np.testing.assert_allclose(np.stack([u, v], axis=-1) - 0.5, pixel, atol=1e-3)
    assert (cameras.width == sphere_scene.width).all() and (cameras.height == sphere_scene.height).all()
    assert cameras.camera_to_worlds.dtype == cameras.fx.dtype == torch.float32


def test_outputs_contain_file_names_and_views(sphere_scene, outputs_of):
    outputs = outputs_of(sphere_scene)
    assert outputs.image_filenames == list(sphere_scene.normal_files)
    assert outputs.mask_filenames == list(sphere_scene.mask_files)
    assert split_views_of(outputs.metadata).normals is sphere_scene.normals
    assert split_views_of(outputs.metadata).indices == tuple(range(7))
    np.testing.assert_array_equal(split_views_of(outputs.metadata).c2w, sphere_scene.c2w)
    assert outputs.scene_box.aabb.tolist() == [[-1, -1, -1], [1, 1, 1]]
    pictures = tuple(sphere_scene.root / "image" / f"{name}.png" for name in sphere_scene.names)
    with_pictures = dataclasses.replace(sphere_scene, image_files=pictures)
    assert outputs_of(with_pictures, exclude_views=(0,)).image_filenames == list(pictures[1:])


def test_original_space_is_the_data_world(sphere_scene, outputs_of):
    """nerfstudio's inverse dataparser transform takes poses from the unit-sphere world to the data world."""
    outputs = outputs_of(sphere_scene)
    back = outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, "opencv").numpy()
    S = sphere_scene.world_from_unit
    expected = S @ sphere_scene.c2w
    np.testing.assert_allclose(back[:, :, 3], expected[:, :3, 3], rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(back[:, :, :3], expected[:, :3, :3] / 55.0, atol=1e-5)
    transform, scale = unit_from_world(S)
    world = np.array([3.0, -4.0, 5.0])
    unit = np.linalg.inv(S) @ [*world, 1]
    np.testing.assert_allclose(scale * (transform @ [*world, 1]), unit[:3], atol=1e-12)


def test_held_out_views_are_the_eval_split(sphere_scene, outputs_of):
    train = outputs_of(sphere_scene, "train", exclude_views=(5, 2))
    assert split_views_of(train.metadata).indices == (0, 1, 3, 4, 6)
    np.testing.assert_array_equal(split_views_of(train.metadata).c2w, sphere_scene.c2w[[0, 1, 3, 4, 6]])
    assert train.cameras.metadata["cam_idx"].tolist() == [[0], [1], [2], [3], [4]]
    for split in ("val", "test"):
        held_out = outputs_of(sphere_scene, split, exclude_views=(5, 2))
        assert split_views_of(held_out.metadata).indices == (2, 5)
        assert held_out.cameras.metadata == {}
        np.testing.assert_allclose(held_out.cameras.fx[:, 0], sphere_scene.K[[2, 5], 0, 0], rtol=1e-6)


def test_without_held_out_views_evaluation_uses_the_training_views(sphere_scene, outputs_of):
    for split in ("val", "test"):
        outputs = outputs_of(sphere_scene, split, pose_noise_rotation_deg=3)
        assert split_views_of(outputs.metadata).indices == tuple(range(7))
        np.testing.assert_array_equal(
            split_views_of(outputs.metadata).c2w,
            split_views_of(outputs_of(sphere_scene, pose_noise_rotation_deg=3).metadata).c2w,
        )
        # Slices and rays of a camera keep the index of their training view.
        camera = outputs.cameras[3:4]
        assert int(camera.metadata["cam_idx"]) == 3
        assert (camera.generate_rays(0, keep_shape=True).metadata["cam_idx"] == 3).all()


def test_scene_is_read_once_and_its_warnings_shown_once(sphere_scene, monkeypatch, capsys):
    reads = []
    warned = dataclasses.replace(sphere_scene, warnings=("mask/03.png: 2% of the normals [off unit], normalized",))
    monkeypatch.setattr(dataparser, "read_scene", lambda *args: reads.append(args) or warned)
    parser = PmniDataParserConfig(normals_folder="normal_world_space_GT", scale_factor=0.5).setup()
    for split in ("train", "val", "test"):
        parser.get_dataparser_outputs(split)
    assert [read[1:] for read in reads] == [("normal_world_space_GT", 0.5)]
    printed = capsys.readouterr().out
    assert printed.count("2% of the normals [off unit], normalized") == 1 and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "without_poses", "words"),
    [
        ({"exclude_views": (7,)}, False, "no view 7"),
        ({"exclude_views": (-1,)}, False, "no view -1"),
        ({"exclude_views": tuple(range(7))}, False, "all 7 views"),
        ({"exclude_views": (2,)}, True, "no views can be held out"),
        ({"exclude_views": (2,), "initial_poses": "ring"}, False, "no views can be held out"),
        ({"exclude_views": (2,), "initial_poses": "none"}, False, "no views can be held out"),
    ],
)
def test_invalid_settings_exit_with_a_one_line_error(sphere_scene, outputs_of, capsys, settings, without_poses, words):
    scene = dataclasses.replace(sphere_scene, c2w=None) if without_poses else sphere_scene
    with pytest.raises(SystemExit) as caught:
        outputs_of(scene, **settings)
    assert caught.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and words in printed and printed.count("\n") == 1


def test_a_missing_folder_exits_with_a_one_line_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        PmniDataParserConfig(data=tmp_path / "nowhere").setup().get_dataparser_outputs("train")
    assert caught.value.code == 1
    printed = capsys.readouterr().err
    assert "nowhere" in printed and printed.count("\n") == 1


def many_poses(sphere_scene: Scene) -> np.ndarray:
    assert sphere_scene.c2w is not None
    return np.tile(sphere_scene.c2w, (1000, 1, 1))


def test_pose_noise_has_the_given_rotation(sphere_scene):
    given = many_poses(sphere_scene)
    rough = perturb_poses(given, 5.0, 0.0, np.random.default_rng(1))
    angle = rotation_deg(rough[:, :3, :3], given[:, :3, :3])
    assert np.sqrt((angle**2).mean()) == pytest.approx(5.0, rel=0.02)
    # Rotations are about the origin, whose position in camera coordinates does not change.
    np.testing.assert_allclose(np.linalg.inv(rough)[:, :3, 3], np.linalg.inv(given)[:, :3, 3], atol=1e-9)


def test_pose_noise_has_the_given_translation_and_keeps_the_origin_in_place(sphere_scene):
    given = many_poses(sphere_scene)
    rough = perturb_poses(given, 0.0, 0.3, np.random.default_rng(2))
    shift = rough[:, :3, 3] - given[:, :3, 3]
    np.testing.assert_allclose(shift.std(axis=0), 0.3, rtol=0.03)
    np.testing.assert_allclose(shift.mean(axis=0), 0.0, atol=0.02)
    seen, seen_before = np.linalg.inv(rough)[:, :3, 3], np.linalg.inv(given)[:, :3, 3]
    np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], seen_before[:, :2] / seen_before[:, 2:], atol=1e-9)
    np.testing.assert_allclose(
        rough[:, :3, :3] @ rough[:, :3, :3].transpose(0, 2, 1), np.tile(np.eye(3), (7000, 1, 1)), atol=1e-9
    )
    # The smallest rotation that compensates a lateral shift s at a distance of 15 is s / 15.
    assert np.sqrt((rotation_deg(rough[:, :3, :3], given[:, :3, :3]) ** 2).mean()) == pytest.approx(
        np.rad2deg(0.3 * np.sqrt(2) / 15), rel=0.03
    )


def test_zero_pose_noise_keeps_the_poses_exactly(sphere_scene):
    np.testing.assert_array_equal(perturb_poses(sphere_scene.c2w, 0, 0, np.random.default_rng(0)), sphere_scene.c2w)


def test_pose_noise_depends_on_its_seed_and_not_on_held_out_views(sphere_scene, outputs_of):
    noise = {"pose_noise_rotation_deg": 5.0, "pose_noise_translation": 0.1}
    first = split_views_of(outputs_of(sphere_scene, **noise).metadata).c2w
    np.testing.assert_array_equal(first, split_views_of(outputs_of(sphere_scene, **noise).metadata).c2w)
    assert not np.allclose(first, split_views_of(outputs_of(sphere_scene, **noise, pose_noise_seed=1).metadata).c2w)
    # A view's noise does not depend on which others are held out.
    np.testing.assert_array_equal(
        split_views_of(outputs_of(sphere_scene, **noise, exclude_views=(1,)).metadata).c2w, first[[0, 2, 3, 4, 5, 6]]
    )
    held_out = outputs_of(sphere_scene, "val", **noise, exclude_views=(1,))
    np.testing.assert_array_equal(split_views_of(held_out.metadata).c2w, sphere_scene.c2w[[1]])


def test_flags_of_the_command_line():
    parsed = tyro.cli(PmniDataParserConfig, args=["--exclude-views", "3", "7", "--pose-noise-rotation-deg", "5"])
    assert parsed.exclude_views == (3, 7) and parsed.pose_noise_rotation_deg == 5.0
    assert pmni_data.config == PmniDataParserConfig()


def test_import_loads_no_data_manager_pipeline_or_trainer():
    """nerfstudio imports this module while its own data manager is only partially loaded."""
    code = (
        "import sys, pmni_nerfstudio.data.dataparser;"
        "print([m for m in sys.modules if m.startswith(('nerfstudio.engine', 'nerfstudio.pipelines',"
        " 'nerfstudio.data.datamanagers', 'nerfstudio.models'))])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_initial_poses_on_a_ring(sphere_scene, outputs_of):
    found = {}
    for clockwise in (False, True):
        how = {"initial_poses": "ring", "ring_elevation_deg": 35.0, "ring_clockwise": clockwise}
        views = split_views_of(outputs_of(sphere_scene, **how).metadata)
        assert views.has_poses
        centers = views.c2w[:, :3, 3]
        height = centers[:, 1] / np.linalg.norm(centers, axis=1)
        np.testing.assert_allclose(np.rad2deg(np.arcsin(height)), 35.0)
        found[clockwise] = np.unwrap(np.arctan2(centers[:, 0], centers[:, 2]))
    np.testing.assert_allclose(np.diff(found[False]), 2 * np.pi / 7)
    np.testing.assert_allclose(np.diff(found[True]), -2 * np.pi / 7)
    assert not split_views_of(outputs_of(dataclasses.replace(sphere_scene, c2w=None)).metadata).has_poses


def test_given_poses_can_be_ignored(sphere_scene, outputs_of):
    """They are then treated like those of a scene without poses."""
    ignored = split_views_of(outputs_of(sphere_scene, initial_poses="none").metadata)
    without = split_views_of(outputs_of(dataclasses.replace(sphere_scene, c2w=None)).metadata)
    assert not ignored.has_poses
    np.testing.assert_array_equal(ignored.c2w, without.c2w)


def test_placeholder_cameras_of_a_scene_without_poses_are_on_a_ring(sphere_scene, outputs_of):
    c2w = split_views_of(outputs_of(dataclasses.replace(sphere_scene, c2w=None)).metadata).c2w
    rotations, centers = c2w[:, :3, :3], c2w[:, :3, 3]
    np.testing.assert_allclose(rotations @ np.swapaxes(rotations, 1, 2), np.tile(np.eye(3), (7, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0)
    np.testing.assert_allclose(-centers / np.linalg.norm(centers, axis=1, keepdims=True), rotations[:, :, 2])
    assert (rotations[:, 1, 1] < -0.5).all()  # the images' y points down, the world's up
    # The sphere of radius .6 fills its masks: there it is thought to have .92.
    assert np.linalg.norm(centers, axis=1) == pytest.approx(15.0 * 0.92 / 0.6, rel=0.06)

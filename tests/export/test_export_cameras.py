# SPDX-License-Identifier: Apache-2.0
"""Exported cameras: all files project points of the data world to the same pixels, also as nerfstudio reads them."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.data.camera_files import read_cameras
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.export.cameras import data_world_poses, write_result_cameras
from pmni_nerfstudio.geometry.transforms import transform_poses


def project(K, c2w, points):
    """Pixels (N, P, 2) of world points, pixel centers at integers."""
    camera = np.einsum("nij,pj->npi", np.linalg.inv(c2w), np.c_[points, np.ones(len(points))])[..., :3]
    pixels = np.einsum("nij,npj->npi", K, camera)
    return pixels[..., :2] / pixels[..., 2:]


def refined_poses(scene, seed=3):
    """The scene's poses, slightly perturbed, so that a test fails if they are not written."""
    rng = np.random.default_rng(seed)
    c2w = scene.c2w.copy()
    c2w[:, :3, :3] = c2w[:, :3, :3] @ Rotation.from_rotvec(rng.normal(0, 0.02, (len(c2w), 3))).as_matrix()
    c2w[:, :3, 3] += rng.normal(0, 0.1, (len(c2w), 3))
    return c2w


@pytest.fixture
def exported(sphere_folder, tmp_path):
    scene = read_scene(sphere_folder)
    c2w = refined_poses(scene)
    folder = tmp_path / "out"
    folder.mkdir()
    files = write_result_cameras(folder, scene, transform_poses(scene.world_from_unit, c2w))
    assert [path.name for path in files] == ["poses.npy", "cameras_refined.npz", "transforms.json"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in files)
    return scene, c2w, folder


def unit_points(count=20):
    return np.random.default_rng(0).uniform(-0.6, 0.6, (count, 3))


def world_points(scene, points):
    return points @ scene.world_from_unit[:3, :3].T + scene.world_from_unit[:3, 3]


def test_poses_are_rigid_and_project_the_data_world_as_the_unit_sphere_world(exported):
    scene, c2w, folder = exported
    poses = np.load(folder / "poses.npy")
    assert poses.shape == c2w.shape
    assert poses.dtype == np.float64
    rotation = poses[:, :3, :3]
    assert rotation @ rotation.transpose(0, 2, 1) == pytest.approx(np.tile(np.eye(3), (len(poses), 1, 1)), abs=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(np.ones(len(poses)))
    assert (poses[:, 3] == [0, 0, 0, 1]).all()
    points = unit_points()
    seen = project(scene.K, poses, world_points(scene, points))
    assert seen == pytest.approx(project(scene.K, c2w, points), abs=1e-6)
    # One radius is 55 of the data's units.
    far = np.linalg.norm(poses[:, None, :3, 3] - world_points(scene, points), axis=-1)
    assert far == pytest.approx(55 * np.linalg.norm(c2w[:, None, :3, 3] - points, axis=-1))


def test_cameras_refined_project_like_poses(exported):
    scene, c2w, folder = exported
    poses = np.load(folder / "poses.npy")
    points = world_points(scene, unit_points())
    with np.load(folder / "cameras_refined.npz") as file:
        matrices = np.stack([file[f"world_mat_{i}"] for i in range(scene.num_views)])
        assert np.allclose(file["scale_mat_0"], scene.world_from_unit)
    pixels = np.einsum("nij,pj->npi", matrices[:, :3], np.c_[points, np.ones(len(points))])
    assert pixels[..., :2] / pixels[..., 2:] == pytest.approx(project(scene.K, poses, points), abs=1e-6)
    K, back, world_from_unit = read_cameras(folder / "cameras_refined.npz", scene.num_views)
    assert K == pytest.approx(scene.K, abs=1e-6)
    assert back == pytest.approx(c2w, abs=1e-8)
    assert world_from_unit == pytest.approx(scene.world_from_unit)


def test_cameras_refined_can_replace_the_camera_file_of_the_scene(exported, sphere_folder):
    _, c2w, folder = exported
    (folder / "cameras_refined.npz").replace(sphere_folder / "cameras_sphere.npz")
    assert read_scene(sphere_folder).c2w == pytest.approx(c2w, abs=1e-8)


def nerfstudio_cameras(folder):
    """Output of nerfstudio's data parser for a folder with transforms.json, without its normalization of poses."""
    config = NerfstudioDataParserConfig(
        data=folder, orientation_method="none", center_method="none", auto_scale_poses=False, eval_mode="all"
    )
    parser = config.setup()
    parser.downscale_factor = 1
    return parser.get_dataparser_outputs("train")


def test_nerfstudio_reads_the_same_rays(exported):
    scene, _, folder = exported
    outputs = nerfstudio_cameras(folder)
    poses = np.load(folder / "poses.npy")
    assert [path.resolve() for path in outputs.image_filenames] == [path.resolve() for path in scene.normal_files]
    assert [path.resolve() for path in outputs.mask_filenames] == [path.resolve() for path in scene.mask_files]
    rays = outputs.cameras.generate_rays(camera_indices=2, keep_shape=True)
    assert rays.origins.shape[:2] == (scene.height, scene.width)
    row, column = 11, 29
    expected = poses[2, :3, :3] @ np.linalg.inv(scene.K[2]) @ [column, row, 1.0]
    assert rays.directions[row, column].numpy() == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)
    assert rays.origins[row, column].numpy() == pytest.approx(poses[2, :3, 3], rel=1e-5)
    # In OpenGL axes the camera looks along -z.
    looking = -outputs.cameras.camera_to_worlds[2, :, 2].numpy()
    assert looking == pytest.approx(poses[2, :3, 2], abs=1e-6)


@pytest.mark.parametrize(("size", "taken"), [((48, 40), True), ((96, 80), False)])
def test_transforms_name_photographs_if_the_intrinsics_fit_them(sphere_folder, tmp_path, size, taken):
    (sphere_folder / "image").mkdir()
    for path in (sphere_folder / "mask").iterdir():
        cv2.imwrite(str(sphere_folder / "image" / path.name), np.zeros((size[1], size[0], 3), np.uint8))
    scene = read_scene(sphere_folder)
    write_result_cameras(tmp_path, scene, transform_poses(scene.world_from_unit, scene.c2w))
    frames = json.loads((tmp_path / "transforms.json").read_text())["frames"]
    folders = {frame["file_path"].split("/")[-2] for frame in frames}
    assert folders == {"image" if taken else "normal_camera_space_GT"}


def test_intrinsics_are_for_the_files_even_if_training_used_smaller_maps(sphere_folder, tmp_path):
    full, half = read_scene(sphere_folder), read_scene(sphere_folder, scale_factor=0.5)
    write_result_cameras(tmp_path, half, transform_poses(half.world_from_unit, half.c2w))
    K, _, _ = read_cameras(tmp_path / "cameras_refined.npz", full.num_views)
    assert K == pytest.approx(full.K, abs=1e-6)
    meta = json.loads((tmp_path / "transforms.json").read_text())
    assert (meta["w"], meta["h"]) == (full.width, full.height)
    assert meta["frames"][1]["cx"] == pytest.approx(full.K[1, 0, 2] + 0.5)


def test_held_out_views_keep_their_index_and_their_given_pose(sphere_scene):
    views = (0, 2, 3, 6)
    refined = refined_poses(sphere_scene)[list(views)]
    given = transform_poses(sphere_scene.world_from_unit, sphere_scene.c2w)
    poses = data_world_poses(sphere_scene, views, refined)
    assert (poses[list(views)] == transform_poses(sphere_scene.world_from_unit, refined)).all()
    assert (poses[[1, 4, 5]] == given[[1, 4, 5]]).all()
    assert not np.allclose(poses[2], given[2])
    without = dataclasses.replace(sphere_scene, c2w=None)
    with pytest.raises(PmniError, match="held out"):
        data_world_poses(without, views, refined)
    assert data_world_poses(without, tuple(range(7)), sphere_scene.c2w) == pytest.approx(given)

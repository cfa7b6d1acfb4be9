# SPDX-License-Identifier: Apache-2.0
"""Changes of camera axes, rigid poses and similarities."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.transforms import (
    OPENCV_FROM_STORED,
    flip_camera_axes,
    flip_y_and_z,
    homogeneous,
    nearest_rotation,
    nerfstudio_from_opencv,
    opencv_from_nerfstudio,
    orthonormalized,
    scale_of,
    transform_points,
    transform_poses,
)


def random_poses(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.from_quat(rng.normal(size=(count, 4))).as_matrix()
    poses[:, :3, 3] = rng.normal(size=(count, 3))
    return poses


def random_similarity(scale: float = 2.5) -> np.ndarray:
    similarity = random_poses(1, seed=9)[0]
    similarity[:3, :3] *= scale
    return similarity


def test_opencv_axes_become_opengl_axes():
    right, down, forward = np.eye(3)
    np.testing.assert_array_equal(flip_y_and_z(right), [1, 0, 0])
    np.testing.assert_array_equal(flip_y_and_z(down), [0, -1, 0])
    np.testing.assert_array_equal(flip_y_and_z(forward), [0, 0, -1])
    np.testing.assert_array_equal(OPENCV_FROM_STORED @ [0.0, 1.0, 0.0], down * -1)


def test_a_camera_whose_axes_change_looks_the_same_way():
    opencv = random_poses(3)
    opengl = flip_camera_axes(opencv)
    np.testing.assert_array_equal(opengl[:, :3, 3], opencv[:, :3, 3])
    point = np.array([0.2, -0.3, 2.0])  # in front of an OpenCV camera
    seen_opencv = opencv[:, :3, :3] @ point
    seen_opengl = opengl[:, :3, :3] @ [0.2, 0.3, -2.0]
    np.testing.assert_allclose(seen_opengl, seen_opencv)


@pytest.mark.parametrize("flip", [flip_y_and_z, flip_camera_axes])
def test_flips_are_involutions_and_keep_type_and_precision(flip):
    values = random_poses(4) if flip is flip_camera_axes else np.random.default_rng(0).normal(size=(4, 5, 3))
    np.testing.assert_array_equal(flip(flip(values)), values)
    tensor = torch.from_numpy(values)
    assert torch.equal(flip(tensor), torch.from_numpy(flip(values)))
    assert flip(tensor.float()).dtype == torch.float32
    assert flip(tensor[:0]).shape == tensor[:0].shape


def test_flip_keeps_single_precision_and_promotes_integers():
    assert flip_y_and_z(np.zeros((2, 3), np.float32)).dtype == np.float32
    np.testing.assert_array_equal(flip_y_and_z(np.array([1, 2, 3])), [1.0, -2.0, -3.0])


def test_homogeneous_appends_the_last_row():
    poses = torch.from_numpy(random_poses(6)).view(2, 3, 4, 4)
    assert torch.equal(homogeneous(poses[..., :3, :]), poses)


@pytest.mark.parametrize("rows", [3, 4])
def test_nerfstudio_poses_go_there_and_back(rows):
    opencv = random_poses(5)
    nerfstudio = nerfstudio_from_opencv(opencv)
    assert nerfstudio.shape == (5, 3, 4) and nerfstudio.dtype == torch.float32
    # nerfstudio's cameras look along -z with y up.
    np.testing.assert_allclose(-nerfstudio[:, :, 2], opencv[:, :3, 2], atol=1e-6)
    np.testing.assert_allclose(nerfstudio[:, :, 1], -opencv[:, :3, 1], atol=1e-6)
    back = opencv_from_nerfstudio(homogeneous(nerfstudio)[:, :rows])
    assert back.dtype == np.float64
    np.testing.assert_allclose(back, opencv, atol=1e-6)


def test_nearest_rotation_is_the_polar_factor():
    rotations = random_poses(20, seed=1)[:, :3, :3]
    np.testing.assert_allclose(nearest_rotation(rotations), rotations, atol=1e-12)
    # R S with S symmetric positive definite has the polar factor R.
    stretch = np.random.default_rng(2).normal(scale=0.2, size=(20, 3, 3))
    stretch = np.eye(3) + stretch @ np.swapaxes(stretch, 1, 2)
    np.testing.assert_allclose(nearest_rotation(rotations @ stretch), rotations, atol=1e-12)


def test_orthonormalized_removes_rounding_errors_and_leaves_its_argument():
    poses = random_poses(8)
    rounded = poses.astype(np.float32)
    before = rounded.copy()
    result = orthonormalized(rounded)
    products = result[:, :3, :3] @ np.swapaxes(result[:, :3, :3], 1, 2)
    np.testing.assert_allclose(products, np.tile(np.eye(3), (8, 1, 1)), atol=1e-14)
    np.testing.assert_allclose(result, poses, atol=1e-6)
    np.testing.assert_array_equal(result[:, :, 3], rounded[:, :, 3])
    np.testing.assert_array_equal(rounded, before)


def test_similarity_scales_distances_and_moves_points():
    similarity = random_similarity(2.5)
    assert scale_of(similarity) == pytest.approx(2.5)
    points = np.random.default_rng(0).normal(size=(10, 3))
    moved = transform_points(similarity, points)
    steps, moved_steps = (np.linalg.norm(np.diff(p, axis=0), axis=1) for p in (points, moved))
    np.testing.assert_allclose(moved_steps, 2.5 * steps)
    np.testing.assert_allclose(moved[0], (similarity @ [*points[0], 1.0])[:3])
    np.testing.assert_allclose(transform_points(np.linalg.inv(similarity), moved), points, atol=1e-12)


def test_poses_move_with_a_similarity_and_see_the_same_picture():
    similarity, poses = random_similarity(2.5), random_poses(6)
    moved = transform_poses(similarity, poses)
    rotations = moved[:, :3, :3]
    np.testing.assert_allclose(rotations @ np.swapaxes(rotations, 1, 2), np.tile(np.eye(3), (6, 1, 1)), atol=1e-14)
    np.testing.assert_allclose(moved[:, :3, 3], transform_points(similarity, poses[:, :3, 3]))
    np.testing.assert_allclose(rotations, similarity[:3, :3] / 2.5 @ poses[:, :3, :3], atol=1e-12)
    # Camera coordinates of a moved point are those of the point, scaled: the image does not change.
    point = np.array([0.3, -0.4, 0.5])
    before = np.linalg.inv(poses) @ [*point, 1.0]
    after = np.linalg.inv(moved) @ [*transform_points(similarity, point[None])[0], 1.0]
    np.testing.assert_allclose(after[:, :3], 2.5 * before[:, :3], atol=1e-12)
    np.testing.assert_allclose(transform_poses(np.linalg.inv(similarity), moved), poses, atol=1e-12)

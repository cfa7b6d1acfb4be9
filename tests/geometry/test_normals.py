# SPDX-License-Identifier: Apache-2.0
"""Angles between normals and their colors."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.normals import angular_error_deg, normals_to_rgb


@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.3, 30.0, 90.0, 179.9, 180.0])
def test_angular_error_is_the_angle_of_the_rotation_between(angle):
    normal = np.array([0.6, 0.0, -0.8])
    axis = np.array([0.0, 1.0, 0.0])  # perpendicular to the normal
    turned = Rotation.from_rotvec(np.radians(angle) * axis).apply(normal)
    assert angular_error_deg(3.0 * normal, 0.2 * turned) == pytest.approx(angle, rel=1e-6, abs=1e-9)


def test_angular_error_of_maps_and_of_missing_normals():
    normals = np.zeros((2, 3, 3), np.float32)
    normals[..., 2] = -1
    normals[0, 0] = 0
    error = angular_error_deg(normals, np.broadcast_to(np.array([0, 0, -2], np.float32), (2, 3, 3)))
    assert error.shape == (2, 3)
    assert error[0, 0] == 90 and error.sum() == 90


def test_a_normal_towards_the_viewer_is_blue_and_the_background_white():
    # OpenCV camera axes: towards the viewer is -z, up is -y.
    normals = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    mask = np.array([[True], [True], [True], [False]])
    expected = np.array([[0.5, 0.5, 1.0], [1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(normals_to_rgb(normals, mask), expected)
    colors = normals_to_rgb(torch.from_numpy(normals), torch.from_numpy(mask))
    np.testing.assert_allclose(colors, expected)


def test_colors_stay_in_range():
    normals = np.random.default_rng(0).normal(scale=3, size=(50, 3))
    colors = normals_to_rgb(normals, np.ones((50, 1)))
    assert colors.min() >= 0 and colors.max() <= 1

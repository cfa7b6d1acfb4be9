# SPDX-License-Identifier: Apache-2.0
"""Pose steps against a given surface, and views at reduced resolution."""

from __future__ import annotations

import numpy as np
from helpers.registration import rotation_errors_deg, true_surface, turned
from helpers.scenes import capture

from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.registration.bundle_adjustment.pose_steps import PoseSteps
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.views import views_of_scene


def test_poses_come_back_to_a_true_surface():
    _, views, truth = capture()
    poses = turned(truth, 1.0)
    steps = PoseSteps(views)
    c2w = poses.c2w()
    errors = [rotation_errors_deg(poses, truth).mean()]
    for _ in range(3):
        c2w = steps.step(true_surface(), c2w)
        errors.append(rotation_errors_deg(Poses.from_c2w(c2w), truth).mean())
    assert 0.5 < errors[0] < 1.5
    assert errors[1] < 0.5 * errors[0] and errors[-1] < 0.2
    # The surface fixes the gauge: the world as a whole has not rotated.
    np.testing.assert_allclose(Poses.from_c2w(c2w).R, truth.R, atol=0.01)


def test_large_maps_are_downsampled(sphere_scene: Scene):
    """A remaining pixel keeps its ray, and about its normal."""
    whole = views_of_scene(sphere_scene)
    assert whole.masks.shape == sphere_scene.masks.shape
    small = views_of_scene(sphere_scene, [1, 4], max_pixels=48 * 40 // 4)
    assert small.masks.shape == (2, 20, 24) and small.names == ("01", "04")
    np.testing.assert_array_equal(small.masks, sphere_scene.masks[[1, 4], ::2, ::2])
    pixel, ray = np.array([7.0, 9.0, 1.0]), np.linalg.inv(whole.K[4]) @ np.array([14.0, 18.0, 1.0])
    np.testing.assert_allclose(np.linalg.inv(small.K[1]) @ pixel, ray)
    cosine = (small.normals * whole.normals[[1, 4], ::2, ::2]).sum(axis=-1)[small.masks]
    assert np.median(np.rad2deg(np.arccos(cosine.clip(-1, 1)))) < 2.0

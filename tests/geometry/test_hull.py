# SPDX-License-Identifier: Apache-2.0
"""The visual hull against a sphere, whose hull from many views is nearly itself."""

import numpy as np
import pytest
import torch
from helpers.scenes import SPHERE_CENTER, SPHERE_RADIUS

from pmni_nerfstudio.geometry.hull import mask_distance_px, visual_hull
from pmni_nerfstudio.geometry.interpolation import grid_points
from pmni_nerfstudio.training.initialization import initialize_from_hull


def test_mask_distance_of_a_half_plane():
    mask = np.zeros((5, 8), bool)
    mask[:, :3] = True
    expected = np.arange(8) - 2.5  # the outline runs between columns 2 and 3; the frame's edge is none
    np.testing.assert_allclose(mask_distance_px(mask), np.tile(expected, (5, 1)), atol=1e-6)


def test_hull_of_a_sphere(sphere_scene):
    scene = sphere_scene
    sdf = visual_hull(scene.masks, scene.K, scene.c2w, 41)
    points = grid_points(41).reshape(-1, 3)
    truth = (points - torch.tensor(SPHERE_CENTER).float()).norm(dim=-1) - SPHERE_RADIUS
    got = sdf.view(-1)
    pixel = 15.0 / scene.K[0, 0, 0]
    # Nothing of the object is carved, up to a pixel's rounding.
    assert got[truth < -pixel].max() < 0
    # In the ring's plane silhouettes from all round make the hull tight.
    in_plane = ((points[:, 2] - SPHERE_CENTER[2]).abs() < 0.03) & (truth.abs() < 0.2)
    assert (got[in_plane] - truth[in_plane]).abs().median() < pixel


def test_votes_forgive_a_bad_mask(sphere_scene):
    scene = sphere_scene
    masks = scene.masks.copy()
    masks[2] = False
    masks[2, 0, 0] = True
    assert not bool((visual_hull(masks, scene.K, scene.c2w, 33) < -0.1).any())
    forgiven = visual_hull(masks, scene.K, scene.c2w, 33, votes=2)
    assert forgiven[16, 16, 16] < -0.3
    # A view more out of the vote can only widen the hull.
    assert bool((forgiven <= visual_hull(scene.masks, scene.K, scene.c2w, 33, votes=1) + 1e-6).all())
    with pytest.raises(ValueError, match="votes"):
        visual_hull(masks, scene.K, scene.c2w, 9, votes=0)


def test_an_object_cut_by_the_frame_goes_on_beyond_it(sphere_scene):
    scene = sphere_scene
    width = scene.masks.shape[2]
    half = scene.masks[:, :, : width // 2]
    K = scene.K.copy()
    sdf = visual_hull(half, K, scene.c2w, 33)
    # The right half is seen by no mask, and nothing says that the object ends there.
    assert sdf[16, 16, 16] < 0


def test_start_asks_for_votes_until_a_hull_is_left(sphere_scene):
    scene = sphere_scene
    masks = np.zeros_like(scene.masks)
    masks[:, 0, 0] = True  # views that agree on nothing
    masks[1:] = scene.masks[1:]
    start = initialize_from_hull(masks, scene.K, scene.c2w, resolution=33, votes=1)
    assert bool((start.sdf < -0.3).any())
    assert start.sdf.shape == (33, 33, 33) and torch.isfinite(start.sdf).all()

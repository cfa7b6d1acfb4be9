# SPDX-License-Identifier: Apache-2.0
"""Visual hull of a sphere, which from many views is nearly the sphere itself."""

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
    expected = np.arange(8) - 2.5  # the contour runs between columns 2 and 3; the image border is not part of it
    np.testing.assert_allclose(mask_distance_px(mask), np.tile(expected, (5, 1)), atol=1e-6)


def test_hull_of_a_sphere(sphere_scene):
    scene = sphere_scene
    sdf = visual_hull(scene.masks, scene.K, scene.c2w, 41)
    points = grid_points(41).reshape(-1, 3)
    truth = (points - torch.tensor(SPHERE_CENTER).float()).norm(dim=-1) - SPHERE_RADIUS
    got = sdf.view(-1)
    pixel = 15.0 / scene.K[0, 0, 0]
    # The hull contains the object, up to a pixel.
    assert got[truth < -pixel].max() < 0
    # In the plane of the ring, silhouettes from all sides make the hull tight.
    in_plane = ((points[:, 2] - SPHERE_CENTER[2]).abs() < 0.03) & (truth.abs() < 0.2)
    assert (got[in_plane] - truth[in_plane]).abs().median() < pixel


def test_votes_tolerate_a_bad_mask(sphere_scene):
    scene = sphere_scene
    masks = scene.masks.copy()
    masks[2] = False
    masks[2, 0, 0] = True
    assert not bool((visual_hull(masks, scene.K, scene.c2w, 33) < -0.1).any())
    tolerant = visual_hull(masks, scene.K, scene.c2w, 33, votes=2)
    assert tolerant[16, 16, 16] < -0.3
    # Ignoring the largest bound can only enlarge the hull.
    assert bool((tolerant <= visual_hull(scene.masks, scene.K, scene.c2w, 33, votes=1) + 1e-6).all())
    with pytest.raises(ValueError, match="votes"):
        visual_hull(masks, scene.K, scene.c2w, 9, votes=0)


def test_an_object_cut_by_the_image_border_continues_beyond_it(sphere_scene):
    scene = sphere_scene
    width = scene.masks.shape[2]
    half = scene.masks[:, :, : width // 2]
    K = scene.K.copy()
    sdf = visual_hull(half, K, scene.c2w, 33)
    # No mask shows the right half, so the object is not carved there.
    assert sdf[16, 16, 16] < 0


def test_initialization_increases_votes_until_a_hull_remains(sphere_scene):
    scene = sphere_scene
    masks = np.zeros_like(scene.masks)
    masks[:, 0, 0] = True  # one view contradicts all others
    masks[1:] = scene.masks[1:]
    start = initialize_from_hull(masks, scene.K, scene.c2w, resolution=33, votes=1)
    assert bool((start.sdf < -0.3).any())
    assert start.sdf.shape == (33, 33, 33) and torch.isfinite(start.sdf).all()

# SPDX-License-Identifier: Apache-2.0
"""Continuation of normal maps over holes."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.holes import holes_of
from helpers.scenes import make_sphere

from pmni_nerfstudio.geometry.hole_filling import fill_holes
from pmni_nerfstudio.geometry.normals import angular_error_deg


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_holes_of_a_sphere_are_continued(dtype: type) -> None:
    scene = make_sphere(2)
    for truth, mask, hole in zip(scene.normals, scene.masks, holes_of(scene.masks)):
        holed = np.where(hole[..., None], 0, truth).astype(dtype)
        filled = fill_holes(holed, mask, mask & ~hole)
        np.testing.assert_array_equal(filled[mask & ~hole], holed[mask & ~hole].astype(np.float32))
        assert not filled[~mask].any()
        np.testing.assert_allclose(np.linalg.norm(filled[mask], axis=-1), 1, atol=1e-5)
        # A normal turns by 6 degrees per pixel, and by more at the contour; holes have radii of 3 to 6 pixels.
        assert np.median(angular_error_deg(filled, truth)[hole]) < 15


def test_a_map_without_holes_is_returned_as_it_is() -> None:
    scene = make_sphere(1)
    normals, mask = scene.normals[0], scene.masks[0]
    assert fill_holes(normals, mask, mask) is normals


def test_holes_far_from_all_normals_get_the_nearest() -> None:
    normals, mask = np.zeros((8, 400, 3), np.float32), np.ones((8, 400), bool)
    normals[:, 0] = [0.6, 0, -0.8]
    normals[:, 1] = [0, 0, -1]
    filled = fill_holes(normals, mask, normals.any(axis=-1))
    np.testing.assert_allclose(filled[:, -1], normals[:, 1])

# SPDX-License-Identifier: Apache-2.0
"""Weights of single pixels beside sharp edges between flat faces."""

from __future__ import annotations

import numpy as np

from pmni_nerfstudio.registration.surface.pixel_normals import edge_weights
from pmni_nerfstudio.registration.views import Views

CURVATURE = 0.05


def weights_of(normals: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Weights of one view without the border of the image."""
    views = Views(("a",), (normals * valid[..., None])[None], np.ones((1, *valid.shape), bool), np.eye(3)[None])
    return edge_weights(views, CURVATURE)[0]


def test_only_pixels_that_mix_two_faces_lose_their_weight():
    left, right = np.array([-0.6, 0.0, -0.8]), np.array([0.6, 0.0, -0.8])
    normals = np.zeros((7, 11, 3), np.float32)
    normals[:, :5], normals[:, 5:] = left, right
    valid = np.ones((7, 11), bool)
    np.testing.assert_allclose(weights_of(normals, valid), 1.0)
    normals[:, 5] = [0.0, 0.0, -1.0]  # an edge within the pixel
    weights = weights_of(normals, valid)
    assert weights[:, 5].max() < 0.02
    np.testing.assert_allclose(np.delete(weights, 5, axis=1), 1.0)


def test_uniform_bending_keeps_its_weight_and_isolated_pixels_have_none():
    angle = 0.02 * np.arange(12)
    normals = np.tile(np.stack([np.sin(angle), 0 * angle, -np.cos(angle)], axis=-1), (9, 1, 1)).astype(np.float32)
    valid = np.ones((9, 12), bool)
    assert weights_of(normals, valid)[1:-1, 1:-1].min() > 0.999
    valid[:, ::2] = False
    np.testing.assert_array_equal(weights_of(normals, valid), 0.0)

# SPDX-License-Identifier: Apache-2.0
"""The curve of a reflectance bias: its values, its removal from maps, and its derivatives."""

from __future__ import annotations

import numpy as np
import pytest

from pmni_nerfstudio.geometry.cameras import pixel_directions, pixel_grid
from pmni_nerfstudio.geometry.reflectance_bias import COEFFICIENTS, ReflectanceBias, basis, tilted

GLOSSY = ReflectanceBias(tuple(np.deg2rad([3.0, 5.0, 3.0, 1.5, 2.0, 2.0, -1.0])))
K = np.array([[90.0, 0.0, 23.5], [0.0, 90.0, 19.5], [0.0, 0.0, 1.0]])


def random_normals(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals that face the viewer, and unit directions to it."""
    rng = np.random.default_rng(0)
    normals, to_view = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(2, count, 3)))
    normals[(normals * to_view).sum(axis=1) < 0] *= -1
    return normals, to_view


def angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.arccos((a * b).sum(axis=-1).clip(-1, 1))


def test_the_curve_is_a_smooth_partition_that_vanishes_at_the_axis():
    angle = np.deg2rad(np.linspace(0, 120, 481))
    values = basis(angle)
    assert values.shape == (481, COEFFICIENTS)
    np.testing.assert_array_equal(values[0], 0)
    inner = np.deg2rad(np.linspace(10, 90, 60))  # beyond the first knot, the dropped function is zero
    np.testing.assert_allclose(basis(inner).sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(basis(np.deg2rad([95.0, 120.0])), np.tile(basis(np.deg2rad([90.0])), (2, 1)))


def test_normals_turn_toward_the_viewer_by_the_curve_at_their_angle():
    normals, to_view = random_normals(200)
    angle = angles(normals, to_view)
    changed, _ = tilted(normals, to_view, np.array(GLOSSY.coefficients))
    np.testing.assert_allclose(np.linalg.norm(changed, axis=1), 1, atol=1e-12)
    clear = angle > np.deg2rad(8)  # nearer to the axis, a normal turns past it
    np.testing.assert_allclose(angles(changed, to_view)[clear], (angle - GLOSSY.at(angle))[clear], atol=1e-7)
    plane = np.cross(normals, to_view)
    np.testing.assert_allclose((plane * changed).sum(axis=1), 0, atol=1e-12)


def test_derivatives_are_those_of_finite_differences():
    normals, to_view = random_normals(50)
    at, step = np.array(GLOSSY.coefficients), 1e-6
    _, derivative = tilted(normals, to_view, at)
    for k in range(COEFFICIENTS):
        change = step * np.eye(COEFFICIENTS)[k]
        slope = (tilted(normals, to_view, at + change)[0] - tilted(normals, to_view, at - change)[0]) / (2 * step)
        np.testing.assert_allclose(derivative[:, :, k], slope, atol=1e-8)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_the_bias_is_removed_where_a_map_has_normals(kind):
    height, width = 40, 48
    directions = pixel_directions(K, pixel_grid(width, height))
    to_view = -directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    rng = np.random.default_rng(1)
    normals = to_view + 0.6 * rng.normal(size=(height, width, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    valid = (normals * to_view).sum(axis=-1) > 0.2
    valid[:, :5] = False
    given = np.where(valid[..., None], normals, 0).astype(kind)
    removed = GLOSSY.removed(given, valid, K)
    assert removed.dtype == kind and not removed[~valid].any()
    before, after = angles(given.astype(float), to_view), angles(removed.astype(float), to_view)
    clear = valid & (before > np.deg2rad(8))
    np.testing.assert_allclose(
        after[clear], (before - GLOSSY.at(before))[clear], atol=0.01 if kind == np.float16 else 1e-5
    )
    assert ReflectanceBias().removed(given, valid, K) is given and ReflectanceBias().is_zero

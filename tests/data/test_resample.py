# SPDX-License-Identifier: Apache-2.0
"""Resampled maps against the same scene rendered at the other size, and intrinsics against projected points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmni_nerfstudio.data.resample import resample_intrinsics, resample_mask, resample_normals, resampled_size

K = np.array([[300.0, 0, 63.2], [0, 310.0, 44.7], [0, 0, 1]])
SIZE = (128, 96)


def sphere(K: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Exact normals (H, W, 3) and mask of the unit sphere around (.1, -.05, 8), seen from the origin."""
    centre = np.array([0.1, -0.05, 8.0])
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(K).T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    along = rays @ centre
    square = along**2 - (centre @ centre - 1)
    mask = square > 0
    normals = rays * (along - np.sqrt(np.maximum(square, 0)))[..., None] - centre
    return np.where(mask[..., None], normals, 0).astype(np.float32), mask


def angle_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.rad2deg(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2, 0, 1)))


@given(
    st.floats(0.1, 4),
    st.tuples(st.integers(80, 700), st.integers(80, 700)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_intrinsics_keep_a_point_at_its_place_in_the_frame(factor: float, size, place) -> None:
    new_size = resampled_size(size[0], size[1], factor)
    point = np.array([place[0] - 0.5, place[1] - 0.5, 3.0])
    old = (K @ point / point[2])[:2]
    new = (resample_intrinsics(K, size, new_size) @ point / point[2])[:2]
    # The frame reaches from -.5 to size - .5: pixels are areas, their centers at integers.
    np.testing.assert_allclose((new + 0.5) / new_size, (old + 0.5) / size, rtol=1e-9)


def test_intrinsics_of_all_views_at_once() -> None:
    stacked = resample_intrinsics(np.stack([K, 2 * K]), SIZE, (64, 48))
    np.testing.assert_array_equal(stacked[0], resample_intrinsics(K, SIZE, (64, 48)))
    assert stacked.shape == (2, 3, 3)


@pytest.mark.parametrize("factor", [0.25, 0.37, 0.5, 0.81, 1.6, 2.0, 3.0])
def test_normals_equal_those_rendered_at_the_other_size(factor: float) -> None:
    new_size = resampled_size(*SIZE, factor)
    normals, mask = resample_normals(*sphere(K, SIZE), new_size=new_size)
    expected, expected_mask = sphere(resample_intrinsics(K, SIZE, new_size), new_size)
    assert normals.shape == (*new_size[::-1], 3)
    assert normals.dtype == np.float32
    # Outlines agree within about half a pixel of the coarser map, so within its share of the disc.
    coarse_radius = 300 / 8 * min(factor, 1)
    assert (mask ^ expected_mask).sum() < 0.6 / coarse_radius * 2 * expected_mask.sum()
    np.testing.assert_allclose(np.linalg.norm(normals[mask], axis=-1), 1, atol=1e-5)
    assert not normals[~mask].any()
    interior = mask & expected_mask & (expected[..., 2] < -0.7)
    error = angle_deg(normals[interior], expected[interior])
    # A shift of half a pixel, as of a wrong pixel center, would make .5 / radius: 2.3 deg in the middle at factor .25.
    assert error.max() < 0.3 / min(factor, 1)
    bias = (normals[interior] - expected[interior]).mean(axis=0)
    assert np.abs(bias).max() < 1e-3


def test_a_shift_of_half_a_pixel_is_detected() -> None:
    shifted = K + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    (normals, mask), (expected, expected_mask) = sphere(shifted, SIZE), sphere(K, SIZE)
    interior = mask & expected_mask & (expected[..., 2] < -0.7)
    assert np.abs((normals[interior] - expected[interior]).mean(axis=0)).max() > 5e-3


def test_the_background_has_no_influence_on_normals() -> None:
    normals, mask = np.zeros((16, 16, 3), np.float32), np.zeros((16, 16), bool)
    mask[:, 3:11] = True
    normals[mask] = [0.6, 0, -0.8]
    for size in ((5, 5), (7, 9), (40, 40)):
        small, small_mask = resample_normals(normals, mask, size)
        assert 0 < small_mask.sum() < small_mask.size
        np.testing.assert_allclose(small[small_mask], np.broadcast_to([0.6, 0, -0.8], (small_mask.sum(), 3)), atol=1e-5)


@settings(deadline=None)
@given(st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_upsampling_and_downsampling_by_a_whole_factor_is_the_identity(factor: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Blocks wider than a pixel: linear interpolation blurs single ones.
    mask = np.kron(rng.random((6, 7)) < 0.6, np.ones((4, 4))).astype(bool)
    normals = np.where(mask[..., None], np.array([0.36, 0.48, -0.8], np.float32), np.float32(0))
    large, large_mask = resample_normals(normals, mask, (28 * factor, 24 * factor))
    back, back_mask = resample_normals(large, large_mask, (28, 24))
    # Corners may be cut off, by a pixel.
    assert (back_mask ^ mask).sum() <= 4 * 42
    both = back_mask & mask
    np.testing.assert_allclose(back[both], normals[both], atol=1e-5)


def test_masks_are_thresholded_at_half_of_the_area() -> None:
    mask = np.zeros((16, 16), bool)
    mask[0, :2] = True  # half of the first new pixel
    mask[2, 2] = True  # a quarter of another
    small = resample_mask(mask, (8, 8))
    assert small[0, 0]
    assert small.sum() == 1


def test_holes_keep_their_place_and_have_no_influence() -> None:
    """A new pixel has a normal if half of its part of the mask has; the mask does not depend on holes."""
    normals, mask = np.zeros((16, 16, 3), np.float32), np.zeros((16, 16), bool)
    mask[:, 2:14] = True
    normals[mask] = [0.6, 0, -0.8]
    whole, _ = resample_normals(normals, mask, (8, 8))
    holed = normals.copy()
    holed[4:8, 4:8] = 0  # four new pixels
    holed[0, 2:4] = 0  # half of one
    holed[10, 10] = 0  # a quarter of one
    small, small_mask = resample_normals(holed, mask, (8, 8))
    np.testing.assert_array_equal(small_mask, resample_mask(mask, (8, 8)))
    assert not small[2:4, 2:4].any()
    small[2:4, 2:4] = whole[2:4, 2:4]
    np.testing.assert_allclose(small, whole, atol=1e-6)


def test_opposite_normals_have_no_mean() -> None:
    normals = np.zeros((16, 16, 3), np.float32)
    normals[..., 0] = np.where(np.arange(16) % 2, 1, -1)
    small, mask = resample_normals(normals, np.ones((16, 16), bool), (8, 8))
    assert mask.all() and not small.any()


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), 0.01])
def test_wrong_factors(factor: float) -> None:
    with pytest.raises(ValueError, match="positive|reduces"):
        resampled_size(128, 96, factor)

# SPDX-License-Identifier: Apache-2.0
"""Reduction of maps while a scene is read: equal to that of whole maps, at a memory that views do not add to."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pmni_nerfstudio.data.packed_masks import PackedMasks
from pmni_nerfstudio.data.reduction import Reduction, blur_normals, strided_blur
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.data.scene_writer import write_scene
from pmni_nerfstudio.export.cameras import file_intrinsics
from pmni_nerfstudio.geometry.camera_rings import radius_at_depth_1
from pmni_nerfstudio.geometry.cameras import pixel_directions, strided_intrinsics
from pmni_nerfstudio.registration.views import views_of_scene


def ball_maps(size: tuple[int, int], hole: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Normals (H, W, 3) float32 of a ball seen from far away, OpenCV camera axes, and its mask."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    radius = 0.45 * min(size)
    x, y = (x - 0.5 * width) / radius, (y - 0.47 * height) / radius
    mask = x**2 + y**2 < 0.98
    normals = np.stack([x, y, -np.sqrt(np.clip(1 - x**2 - y**2, 0, None))], axis=-1).astype(np.float32)
    normals[~mask] = 0
    if hole:
        normals[height // 3 : height // 3 + 9, width // 3 : width // 2] = 0
    return normals, mask


def write_balls(folder: Path, views: int, size: tuple[int, int]) -> Path:
    """Write a scene of equal views without poses; one has a hole."""
    maps = [ball_maps(size, hole=view == 1) for view in range(views)]
    K = np.array([[3.0 * size[0], 0, size[0] / 2], [0, 3.0 * size[0], size[1] / 2], [0, 0, 1]])
    write_scene(
        folder,
        names=[f"{view:02d}" for view in range(views)],
        K=np.repeat(K[None], views, axis=0),
        c2w=None,
        world_from_unit=np.eye(4),
        masks=np.stack([mask for _, mask in maps]),
        normals=np.stack([normals for normals, _ in maps]),
    )
    return folder


@pytest.mark.parametrize("step", [2, 3, 10])
def test_blur_at_kept_pixels_equals_blur_of_whole_map(step: int) -> None:
    normals, mask = ball_maps((173, 131), hole=True)
    valid = mask & normals.any(axis=-1)
    whole = blur_normals(normals, valid, 0.5 * step)[::step, ::step]
    reduced = strided_blur(normals, step)
    np.testing.assert_allclose(reduced, whole, atol=2e-6)
    assert (reduced.any(axis=-1) == valid[::step, ::step]).all()


def test_reduced_scene_equals_reduction_of_whole_scene(tmp_path: Path) -> None:
    folder = write_balls(tmp_path / "scene", 3, (160, 120))
    whole = read_scene(folder)
    reduced = read_scene(folder, reduce=lambda height, width: Reduction(height // 40))
    expected = views_of_scene(whole, max_pixels=160 * 120 // 9)
    assert reduced.step == 3
    assert reduced.masks.shape == (3, 40, 54)
    np.testing.assert_array_equal(reduced.masks, expected.masks)
    np.testing.assert_allclose(reduced.K, expected.K)
    np.testing.assert_allclose(reduced.normals, expected.normals, atol=1e-3)  # half precision before the average
    assert reduced.warnings == whole.warnings
    np.testing.assert_array_equal(reduced.facts.areas, whole.masks.sum(axis=(1, 2)))
    np.testing.assert_array_equal(reduced.facts.missing, (whole.masks & ~whole.valid).sum(axis=(1, 2)))
    np.testing.assert_allclose(file_intrinsics(reduced)[0], whole.K)
    strided = read_scene(folder, reduce=lambda height, width: Reduction(4, smoothed=False))
    np.testing.assert_array_equal(strided.normals, whole.normals[:, ::4, ::4])
    np.testing.assert_allclose(strided.K, strided_intrinsics(whole.K, 4))


def test_memory_of_reading_does_not_grow_with_the_number_of_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmni_nerfstudio.data.mask_maps._MANY_PIXELS", 0)  # one view at a time, as of large maps
    read_scene(write_balls(tmp_path / "first", 2, (240, 180)))  # imports and caches
    peaks = []
    for views in (2, 6):
        folder = write_balls(tmp_path / f"{views}", views, (240, 180))
        tracemalloc.start()
        read_scene(folder, reduce=lambda height, width: Reduction(8))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    a_view = 240 * 180 * (3 * 2 + 1)  # in memory, unless it is reduced
    assert peaks[1] - peaks[0] < 0.5 * 4 * a_view


def test_packed_masks_return_what_was_stored() -> None:
    masks = np.random.default_rng(0).random((3, 5, 13)) < 0.5
    packed = PackedMasks((3, 5, 13))
    for view, mask in enumerate(masks):
        packed[view] = mask
    assert len(packed) == 3
    assert packed.shape == masks.shape
    np.testing.assert_array_equal(np.stack(list(packed)), masks)


def test_radius_of_mask_is_that_of_all_its_pixels() -> None:
    mask = np.random.default_rng(1).random((40, 60)) < 0.02
    K = np.array([[50.0, 3, 30], [0, 60.0, 20], [0, 0, 1]])
    y, x = np.nonzero(mask)
    rays = pixel_directions(K, np.stack([x, y], axis=-1))[:, :2]
    expected = np.linalg.norm(rays - rays.mean(axis=0), axis=1).max()
    assert radius_at_depth_1(K, mask) == pytest.approx(expected, rel=1e-12)

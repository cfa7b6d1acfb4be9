# SPDX-License-Identifier: Apache-2.0
"""`pmni prepare` on a folder, and the comparison of the scene it makes with the ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.scenes import AnalyticScene, world_rays
from pmni_nerfstudio.commands.prepare import PrepareCommand
from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.geometry.transforms import transform_poses


def prepare(source: Path, out: Path, **options) -> Scene:
    """Run `pmni prepare` and read the scene that it makes."""
    PrepareCommand(src=source, out=out, **options).main()
    return read_scene(out)


def angle_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles between unit vectors, in degrees."""
    return np.rad2deg(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2, 0, 1)))


def shift_px(found: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Shift in x and y, in pixels, of maps (N, H, W, 3) against the true ones, estimated from the pixels (N, H, W) bool.

    The difference of the maps is fitted by their gradient; the blur of interpolation has no preferred direction.
    """
    gradients = np.stack([np.gradient(truth, axis=axis)[inside].ravel() for axis in (2, 1)], axis=-1)
    return np.linalg.lstsq(gradients, (found.astype(float) - truth)[inside].ravel(), rcond=None)[0]


def data_rays(K: np.ndarray, data_c2w: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Origins (N, 3) and unit directions (N, H, W, 3) of all pixels' rays in the data's world."""
    origins, rays = world_rays(K, data_c2w, *size)
    return origins, rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def assert_is(scene: Scene, truth: AnalyticScene, normals_deg: float = 0.1, has_sphere: bool = True) -> None:
    """Check rays (in millimeters), masks, normals and unit sphere against the ground truth."""
    assert (scene.width, scene.height) == truth.size and scene.c2w is not None
    poses = transform_poses(scene.world_from_unit, scene.c2w)
    for mine, true in zip(
        data_rays(scene.K, poses, truth.size), data_rays(truth.K, truth.data_c2w, truth.size), strict=True
    ):
        np.testing.assert_allclose(mine, true, atol=1e-3 if mine.ndim == 2 else 1e-7)
    assert_maps(scene, truth, normals_deg)
    if has_sphere:
        np.testing.assert_allclose(scene.world_from_unit, truth.world_from_unit, rtol=1e-5, atol=1e-3)
    else:
        assert_sphere_is_snug(scene, truth)


def assert_maps(scene: Scene, truth: AnalyticScene, normals_deg: float = 0.1) -> None:
    np.testing.assert_array_equal(scene.masks, truth.masks)
    error = angle_deg(scene.normals.astype(np.float64), truth.normals)[truth.masks]
    assert error.max() < normals_deg
    assert not scene.normals[~truth.masks].any()


def assert_sphere_is_snug(scene: Scene, truth: AnalyticScene) -> None:
    """Check that the fitted unit sphere is close to the true one in position and size."""
    radius = np.cbrt(np.linalg.det(scene.world_from_unit[:3, :3]))
    true_radius = np.cbrt(np.linalg.det(truth.world_from_unit[:3, :3]))
    assert 0.75 * true_radius < radius < 1.25 * true_radius
    assert np.linalg.norm(scene.world_from_unit[:3, 3] - truth.world_from_unit[:3, 3]) < 0.3 * true_radius
    # Every mask lies within the image of the unit sphere.
    assert not any("unit sphere" in warning for warning in scene.warnings)

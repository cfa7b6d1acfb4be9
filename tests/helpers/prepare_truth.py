# SPDX-License-Identifier: Apache-2.0
"""A scene whose truth is known, for tests to write in the formats of others, and the comparison with what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.commands.prepare import PrepareCommand
from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.geometry.transforms import OPENCV_FROM_STORED, transform_poses
from pmni_nerfstudio.synth.scene import SynthConfig, make_scene

VIEWS = 8


@dataclass(frozen=True)
class TruthOf:
    """Of N views, in natural order."""

    K: np.ndarray
    """(N, 3, 3), pixel centres at integers."""
    poses: np.ndarray
    """(N, 4, 4), camera to the data's world (mm), OpenCV axes."""
    world_from_unit: np.ndarray
    masks: np.ndarray
    normals: np.ndarray
    """(N, H, W, 3), OpenCV camera axes."""

    @property
    def size(self) -> tuple[int, int]:
        return self.masks.shape[2], self.masks.shape[1]

    def stored(self, view: int, axes: str) -> np.ndarray:
        """A view's normals in other axes."""
        turn = {
            "camera": OPENCV_FROM_STORED,
            "opencv": np.eye(3),
            "directx": np.diag([1.0, 1.0, -1.0]),
            "world": self.poses[view, :3, :3],
        }[axes]
        return self.normals[view] @ turn.T


def make_truth() -> TruthOf:
    """A bumpy object off the origin of a world that is turned and in millimetres, seen from a wobbly ring."""
    scene = make_scene(SynthConfig(shape="blob", views=VIEWS, width=72, height=60, jitter=1.0, seed=3))
    world = scene.world_from_unit.copy()
    world[:3, :3] = 55.0 * Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
    world[:3, 3] = [210.0, -90.0, 640.0]
    K = np.repeat(scene.K[None], VIEWS, axis=0)
    return TruthOf(K, transform_poses(world, scene.c2w), world, scene.masks, scene.normals)


def as_colours(normals: np.ndarray, mask: np.ndarray, bits: int = 16) -> np.ndarray:
    """A PNG's pixels of normals, black off the mask."""
    top = 2**bits - 1
    return np.where(mask[..., None], np.round((normals + 1) / 2 * top), 0).astype(np.uint16 if bits == 16 else np.uint8)


def write_maps(
    folder: Path,
    truth: TruthOf,
    names: list[str],
    axes: str = "camera",
    normals: str = "normal",
    masks: str | None = "mask",
) -> None:
    """normal/NAME.png and mask/NAME.png."""
    (folder / normals).mkdir(parents=True)
    if masks is not None:
        (folder / masks).mkdir()
    for view, name in enumerate(names):
        write_png(folder / normals / f"{name}.png", as_colours(truth.stored(view, axes), truth.masks[view]))
        if masks is not None:
            write_png(folder / masks / f"{name}.png", truth.masks[view])


def prepare(source: Path, out: Path, **options) -> Scene:
    """What `pmni prepare` makes of it."""
    PrepareCommand(src=source, out=out, **options).main()
    return read_scene(out)


def angle_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.rad2deg(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2, 0, 1)))


def shift_px(found: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """By how many pixels in x and y maps (N, H, W, 3) lie beside the truth, from the pixels (N, H, W) bool.

    Interpolation loses detail, but to no side; what a shift adds is its share of the normals' own gradient.
    """
    gradients = np.stack([np.gradient(truth, axis=axis)[inside].ravel() for axis in (2, 1)], axis=-1)
    return np.linalg.lstsq(gradients, (found.astype(float) - truth)[inside].ravel(), rcond=None)[0]


def data_rays(K: np.ndarray, poses: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Origins (N, 3) and unit directions (N, H, W, 3) in the data's world."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    rays = np.einsum("nij,hwj->nhwi", np.linalg.inv(K), np.stack([x, y, np.ones_like(x)], axis=-1))
    rays = np.einsum("nij,nhwj->nhwi", poses[:, :3, :3], rays)
    return poses[:, :3, 3], rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def assert_is(scene: Scene, truth: TruthOf, normals_deg: float = 0.1, has_sphere: bool = True) -> None:
    """Rays in millimetres, masks and normals are the truth's; the unit sphere too, or it holds the object snugly."""
    assert (scene.width, scene.height) == truth.size and scene.c2w is not None
    poses = transform_poses(scene.world_from_unit, scene.c2w)
    for mine, true in zip(
        data_rays(scene.K, poses, truth.size), data_rays(truth.K, truth.poses, truth.size), strict=True
    ):
        np.testing.assert_allclose(mine, true, atol=1e-3 if mine.ndim == 2 else 1e-7)
    assert_maps(scene, truth, normals_deg)
    if has_sphere:
        np.testing.assert_allclose(scene.world_from_unit, truth.world_from_unit, rtol=1e-5, atol=1e-3)
    else:
        assert_sphere_is_snug(scene, truth)


def assert_maps(scene: Scene, truth: TruthOf, normals_deg: float = 0.1) -> None:
    np.testing.assert_array_equal(scene.masks, truth.masks)
    error = angle_deg(scene.normals.astype(np.float64), truth.normals)[truth.masks]
    assert error.max() < normals_deg
    assert not scene.normals[~truth.masks].any()


def assert_sphere_is_snug(scene: Scene, truth: TruthOf) -> None:
    """It is where the true one is, and not much larger or smaller."""
    radius = np.cbrt(np.linalg.det(scene.world_from_unit[:3, :3]))
    true_radius = np.cbrt(np.linalg.det(truth.world_from_unit[:3, :3]))
    assert 0.75 * true_radius < radius < 1.25 * true_radius
    assert np.linalg.norm(scene.world_from_unit[:3, 3] - truth.world_from_unit[:3, 3]) < 0.3 * true_radius
    # Every mask is within the unit sphere's image.
    assert not any("unit sphere" in warning for warning in scene.warnings)

# SPDX-License-Identifier: Apache-2.0
"""A scene whose truth is known in closed form: a sphere off the world's origin, seen by cameras that don't face it."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is loaded: threads that spin while they wait slow tests down many times on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.data.scene import Scene, write_scene

SPHERE_CENTRE = np.array([0.15, -0.1, 0.2])
SPHERE_RADIUS = 0.6


def ring_c2w(num_views: int, distance: float, rng: np.random.Generator) -> np.ndarray:
    """Poses (N, 4, 4), OpenCV axes, on a ring about z: a few degrees of roll, and aimed a little off the origin."""
    poses = np.tile(np.eye(4), (num_views, 1, 1))
    for i, pose in enumerate(poses):
        azimuth, elevation = 2 * np.pi * i / num_views, np.deg2rad(20 + 10 * np.sin(i))
        centre = distance * np.array(
            [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
        )
        forward = rng.uniform(-0.1, 0.1, 3) - centre
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        axes = np.stack([right, np.cross(forward, right), forward], axis=1)
        pose[:3, :3] = axes @ Rotation.from_euler("z", rng.uniform(-10, 10), degrees=True).as_matrix()
        pose[:3, 3] = centre
    return poses


def hit_sphere(origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First hits of unit rays with the sphere: distances (R,), NaN for a miss, and outward normals (R, 3)."""
    to_centre = SPHERE_CENTRE - origins
    along = (to_centre * directions).sum(-1)
    half_chord_squared = SPHERE_RADIUS**2 - (to_centre**2).sum(-1) + along**2
    distance = along - np.sqrt(np.where(half_chord_squared > 0, half_chord_squared, np.nan))
    return distance, (origins + directions * distance[..., None] - SPHERE_CENTRE) / SPHERE_RADIUS


def sphere_maps(K: np.ndarray, c2w: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks (N, H, W), normals (N, H, W, 3) in OpenCV camera axes and z depths (N, H, W; NaN off the mask)."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1).astype(float)
    rays = np.einsum("nij,hwj->nhwi", np.linalg.inv(K), pixels)
    length = np.linalg.norm(rays, axis=-1)
    directions = np.einsum("nij,nhwj->nhwi", c2w[:, :3, :3], rays / length[..., None])
    distance, normals = hit_sphere(c2w[:, None, None, :3, 3], directions)
    masks = np.isfinite(distance)
    normals = np.einsum("nji,nhwj->nhwi", c2w[:, :3, :3], normals)
    return masks, np.where(masks[..., None], normals, 0.0), distance / length


def make_sphere_arrays(num_views: int = 7, width: int = 48, height: int = 40) -> dict:
    """Arguments of `write_scene` for the sphere."""
    rng = np.random.default_rng(7)
    distance = 15.0
    c2w = ring_c2w(num_views, distance, rng)
    focal = 0.45 * min(width, height) * distance  # the unit sphere fills nine tenths of the frame
    K = np.tile(np.eye(3), (num_views, 1, 1))
    K[:, 0, 0] = focal * rng.uniform(0.97, 1.03, num_views)
    K[:, 1, 1] = focal * rng.uniform(0.97, 1.03, num_views)
    K[:, 0, 2] = (width - 1) / 2 + rng.uniform(-2, 2, num_views)
    K[:, 1, 2] = (height - 1) / 2 + rng.uniform(-2, 2, num_views)
    masks, normals, depths = sphere_maps(K, c2w, width, height)
    world_from_unit = np.eye(4)
    world_from_unit[:3, :3] = 55.0 * Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
    world_from_unit[:3, 3] = [5.5, -2.75, 11.0]
    return {
        "names": tuple(f"{i:02d}" for i in range(num_views)),
        "K": K,
        "c2w": c2w,
        "world_from_unit": world_from_unit,
        "masks": masks,
        "normals": normals.astype(np.float32),
        "depths": depths.astype(np.float32),
    }


@pytest.fixture
def sphere_scene() -> Scene:
    """The sphere in memory, with no files behind it."""
    arrays = make_sphere_arrays()
    names, masks = arrays["names"], arrays["masks"]
    root = Path("sphere")
    return Scene(
        root=root,
        names=names,
        width=masks.shape[2],
        height=masks.shape[1],
        K=arrays["K"],
        c2w=arrays["c2w"],
        world_from_unit=arrays["world_from_unit"],
        masks=masks,
        normals=arrays["normals"].astype(np.float16),
        normal_files=tuple(root / "normal_camera_space_GT" / f"{name}.exr" for name in names),
        mask_files=tuple(root / "mask" / f"{name}.png" for name in names),
        depth_files=None,
        image_files=None,
        mesh_file=None,
        warnings=(),
    )


@pytest.fixture
def sphere_folder(tmp_path: Path) -> Path:
    """The sphere as a scene folder, depth maps with it."""
    folder = tmp_path / "sphere"
    write_scene(folder, **make_sphere_arrays())
    return folder

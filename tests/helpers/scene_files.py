# SPDX-License-Identifier: Apache-2.0
"""A small scene folder with known ground truth, and changes to its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import trimesh

from helpers.scenes import Ellipsoid, analytic_scene, look_at, similarity
from pmni_nerfstudio.data.camera_files import write_cameras
from pmni_nerfstudio.data.images import read_exr, read_mask, write_exr, write_png

WIDTH, HEIGHT, VIEWS = 72, 60, 4
NAMES = ("1", "2", "9", "10")
ELLIPSOID = Ellipsoid((0, 0, 0), (0.8, 0.55, 0.4))


def ellipsoid(focal: float = 180.0, views: int = VIEWS, size: tuple[int, int] = (WIDTH, HEIGHT)) -> dict:
    """Arguments of `write_scene` for exact maps of an ellipsoid about the origin."""
    K = np.array([[focal, 0, size[0] / 2 - 0.8], [0, focal * 1.02, size[1] / 2 - 0.2], [0, 0, 1]])
    azimuths = np.linspace(0, 2 * np.pi, views, endpoint=False) + 0.3
    c2w = np.stack([look_at(6.0 * np.array([np.cos(a) * 0.9, np.sin(a) * 0.9, 0.44])) for a in azimuths])
    world = similarity(55, (20, -30, 50), (5, -3, 11))
    names = NAMES if views == VIEWS else None
    scene = analytic_scene(ELLIPSOID.intersect, K, c2w, size, world, names)
    return {**scene.arguments(), "mesh": trimesh.creation.icosphere(subdivisions=1)}


NORMALS = "normal_camera_space_GT"


def quantise(normals: np.ndarray, dtype: type) -> np.ndarray:
    return np.rint((normals + 1) / 2 * np.iinfo(dtype).max).astype(dtype)


def add_world_normals(root: Path, truth: dict, change: np.ndarray | None = None) -> None:
    turn = truth["world_from_unit"][:3, :3] / 55
    folder = root / "normal_world_space_GT"
    folder.mkdir()
    for name, c2w, normals in zip(NAMES, truth["c2w"], truth["normals"]):
        world = normals @ (turn @ c2w[:3, :3]).T
        write_exr(folder / f"{name}.exr", world if change is None else world @ change.T)


def change_cameras(root: Path, **changes) -> None:
    """Apply functions to entries of cameras_sphere.npz; an entry that becomes None is removed."""
    file = root / "cameras_sphere.npz"
    arrays = dict(np.load(file))
    for name, change in changes.items():
        array = change(arrays[name])
        arrays[name] = array
        if array is None:
            del arrays[name]
    np.savez(file, **arrays)


def change_all_cameras(root: Path, left: np.ndarray) -> None:
    change_cameras(root, **{f"world_mat_{i}": lambda world_mat: left @ world_mat for i in range(VIEWS)})


def change_pose(root: Path, truth: dict, view: int, c2w: np.ndarray) -> None:
    poses = truth["c2w"].copy()
    poses[view] = c2w
    write_cameras(root / "cameras_sphere.npz", truth["K"], poses, truth["world_from_unit"])


def change_normals(root: Path, change: Callable[[np.ndarray], np.ndarray], names=NAMES) -> None:
    for name in names:
        file = root / NORMALS / f"{name}.exr"
        write_exr(file, change(read_exr(file)))


def change_mask(root: Path, change: Callable[[np.ndarray], np.ndarray], name: str = "9") -> None:
    write_png(root / "mask" / f"{name}.png", change(read_mask(root / "mask" / f"{name}.png")))


def use_intrinsics(root: Path, text: str | None = None, **changes) -> None:
    (root / "cameras_sphere.npz").unlink()
    values = {"fl_x": 180.0, "fl_y": 183.6, "cx": 35.2, "cy": 29.8, "w": WIDTH, "h": HEIGHT, **changes}
    values = {name: value for name, value in values.items() if value is not None}
    (root / "intrinsics.json").write_text(json.dumps(values) if text is None else text)


def with_infinities(normals: np.ndarray) -> np.ndarray:
    normals[HEIGHT // 2, WIDTH // 2 : WIDTH // 2 + 3] = np.inf
    return normals


def hardly_any(normals: np.ndarray) -> np.ndarray:
    """A map with normals in a few columns only."""
    normals[:, : WIDTH // 2 - 1], normals[:, WIDTH // 2 + 1 :] = 0, np.nan
    return normals


def shifted(normals: np.ndarray, columns: int) -> np.ndarray:
    """A map moved to the right."""
    return np.roll(normals, columns, axis=1)


def without_left_part(normals: np.ndarray) -> np.ndarray:
    normals[:, : WIDTH // 2] = 0
    return normals


def set_entry(index: tuple[int, int], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change

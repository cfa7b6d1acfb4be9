# SPDX-License-Identifier: Apache-2.0
"""Files in the layouts that `pmni prepare` reads, written from a scene with known ground truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import scipy.io
import trimesh
from nerfstudio.data.utils import colmap_parsing_utils as parsing

from helpers.scenes import AnalyticScene
from pmni_nerfstudio.data.images import write_png

NAMES = [f"{view:03d}" for view in range(8)]


def write_transforms(folder: Path, truth: AnalyticScene, axes: str = "opencv", **more) -> Path:
    """Write nerfstudio's transforms.json with normals and masks named after images that do not exist."""
    write_maps(folder, truth, [f"frame_{i + 1:05d}" for i in range(8)], axes, "normals", "masks")
    frames = [
        {
            "file_path": f"images/frame_{i + 1:05d}.png",
            "transform_matrix": (pose @ np.diag([1.0, -1, -1, 1])).tolist(),
        }
        for i, pose in enumerate(truth.data_c2w)
    ]
    k = truth.K[0]
    meta = {"camera_model": "OPENCV", "fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2] + 0.5, "cy": k[1, 2] + 0.5}
    meta |= {"w": truth.size[0], "h": truth.size[1], "k1": 0.0, "p1": 0.0}
    (folder / "transforms.json").write_text(json.dumps({**meta, **more, "frames": frames[::-1]}))
    return folder


def world_mats(truth: AnalyticScene, has_scale: bool = True, first: int = 0) -> dict[str, np.ndarray]:
    arrays = {}
    for i, (K, pose) in enumerate(zip(truth.K, truth.data_c2w)):
        matrix = np.eye(4)
        matrix[:3] = K @ np.linalg.inv(pose)[:3]
        arrays[f"world_mat_{i + first}"] = matrix.astype(np.float32)
        if has_scale:
            arrays[f"scale_mat_{i + first}"] = truth.world_from_unit.astype(np.float32)
    return arrays


def write_diligent(root: Path, truth: AnalyticScene, has_mat: bool = True) -> None:
    """Write DiLiGenT-MV's layout: KK, Rc_i and Tc_i counted from 1, a folder for each view, a mesh in the world."""
    calibration: dict[str, np.ndarray] = {"KK": truth.K[0]}
    for i, pose in enumerate(truth.data_c2w):
        w2c = np.linalg.inv(pose)
        calibration |= {f"Rc_{i + 1}": w2c[:3, :3], f"Tc_{i + 1}": w2c[:3, 3:]}
        view = root / f"view_{i + 1:02d}"
        view.mkdir(parents=True)
        write_png(view / "mask.png", truth.masks[i])
        stored = truth.stored_normals(i, "camera")
        if has_mat:
            scipy.io.savemat(view / "Normal_gt.mat", {"Normal_gt": np.where(truth.masks[i][..., None], stored, 0)})
        else:
            write_png(view / "Normal_gt.png", as_colors(stored, truth.masks[i]))
    scipy.io.savemat(root / "Calib_Results.mat", calibration)
    ball = trimesh.creation.icosphere(subdivisions=2, radius=50.0)
    ball.apply_translation(truth.world_from_unit[:3, 3])
    ball.export(root / "mesh_Gt.ply")


def write_model(folder: Path, truth: AnalyticScene, suffix: str, names: list[str]) -> None:
    """Write a COLMAP model of pinhole cameras with nerfstudio's copy of COLMAP's scripts."""
    folder.mkdir(parents=True, exist_ok=True)
    k = truth.K[0]
    params = np.array([k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5])
    cameras = {3: parsing.Camera(3, "PINHOLE", *truth.size, params)}
    images = {}
    for i, (name, pose) in enumerate(zip(names, truth.data_c2w), start=1):
        w2c = np.linalg.inv(pose)
        no_points = np.zeros((0, 2)), np.zeros(0, dtype=int)
        images[i] = parsing.Image(i, parsing.rotmat2qvec(w2c[:3, :3]), w2c[:3, 3], 3, name, *no_points)
    if suffix == ".bin":
        parsing.write_cameras_binary(cameras, folder / "cameras.bin")
        parsing.write_images_binary(images, folder / "images.bin")
    else:
        parsing.write_cameras_text(cameras, folder / "cameras.txt")
        parsing.write_images_text(images, folder / "images.txt")


def as_colors(normals: np.ndarray, mask: np.ndarray, bits: int = 16) -> np.ndarray:
    """Normals as pixels of a PNG, black off the mask and where there is none."""
    top = 2**bits - 1
    has_normal = mask & normals.any(axis=-1)
    return np.where(has_normal[..., None], np.round((normals + 1) / 2 * top), 0).astype(
        np.uint16 if bits == 16 else np.uint8
    )


def write_maps(
    folder: Path,
    truth: AnalyticScene,
    names: list[str],
    axes: str = "camera",
    normals: str = "normal",
    masks: str | None = "mask",
) -> None:
    """Write normal/NAME.png and mask/NAME.png."""
    (folder / normals).mkdir(parents=True)
    if masks is not None:
        (folder / masks).mkdir()
    for view, name in enumerate(names):
        write_png(folder / normals / f"{name}.png", as_colors(truth.stored_normals(view, axes), truth.masks[view]))
        if masks is not None:
            write_png(folder / masks / f"{name}.png", truth.masks[view])

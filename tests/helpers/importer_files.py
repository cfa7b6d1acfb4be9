# SPDX-License-Identifier: Apache-2.0
"""Files in the layouts that `pmni prepare` reads, written from a scene with known ground truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import scipy.io
import trimesh
from nerfstudio.data.utils import colmap_parsing_utils as parsing

from helpers.prepare_truth import TruthOf, as_colours, write_maps
from pmni_nerfstudio.data.images import write_png

NAMES = [f"{view:03d}" for view in range(8)]


def write_transforms(folder: Path, truth: TruthOf, axes: str = "opencv", **more) -> Path:
    """As nerfstudio has it; normals and masks by the images' names, no image at hand."""
    write_maps(folder, truth, [f"frame_{i + 1:05d}" for i in range(8)], axes, "normals", "masks")
    frames = [
        {
            "file_path": f"images/frame_{i + 1:05d}.png",
            "transform_matrix": (pose @ np.diag([1.0, -1, -1, 1])).tolist(),
        }
        for i, pose in enumerate(truth.poses)
    ]
    k = truth.K[0]
    meta = {"camera_model": "OPENCV", "fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2] + 0.5, "cy": k[1, 2] + 0.5}
    meta |= {"w": truth.size[0], "h": truth.size[1], "k1": 0.0, "p1": 0.0}
    (folder / "transforms.json").write_text(json.dumps({**meta, **more, "frames": frames[::-1]}))
    return folder


def world_mats(truth: TruthOf, has_scale: bool = True, first: int = 0) -> dict[str, np.ndarray]:
    arrays = {}
    for i, (K, pose) in enumerate(zip(truth.K, truth.poses)):
        matrix = np.eye(4)
        matrix[:3] = K @ np.linalg.inv(pose)[:3]
        arrays[f"world_mat_{i + first}"] = matrix.astype(np.float32)
        if has_scale:
            arrays[f"scale_mat_{i + first}"] = truth.world_from_unit.astype(np.float32)
    return arrays


def write_diligent(root: Path, truth: TruthOf, has_mat: bool = True) -> None:
    """As it is released: KK, Rc_i, Tc_i from 1, a folder for each view, a mesh in the world."""
    calibration: dict[str, np.ndarray] = {"KK": truth.K[0]}
    for i, pose in enumerate(truth.poses):
        w2c = np.linalg.inv(pose)
        calibration |= {f"Rc_{i + 1}": w2c[:3, :3], f"Tc_{i + 1}": w2c[:3, 3:]}
        view = root / f"view_{i + 1:02d}"
        view.mkdir(parents=True)
        write_png(view / "mask.png", truth.masks[i])
        stored = truth.stored(i, "camera")
        if has_mat:
            scipy.io.savemat(view / "Normal_gt.mat", {"Normal_gt": np.where(truth.masks[i][..., None], stored, 0)})
        else:
            write_png(view / "Normal_gt.png", as_colours(stored, truth.masks[i]))
    scipy.io.savemat(root / "Calib_Results.mat", calibration)
    ball = trimesh.creation.icosphere(subdivisions=2, radius=50.0)
    ball.apply_translation(truth.world_from_unit[:3, 3])
    ball.export(root / "mesh_Gt.ply")


def write_model(folder: Path, truth: TruthOf, suffix: str, names: list[str]) -> None:
    """A COLMAP model of pinholes, by nerfstudio's copy of COLMAP's own scripts."""
    folder.mkdir(parents=True, exist_ok=True)
    k = truth.K[0]
    params = np.array([k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5])
    cameras = {3: parsing.Camera(3, "PINHOLE", *truth.size, params)}
    images = {}
    for i, (name, pose) in enumerate(zip(names, truth.poses), start=1):
        w2c = np.linalg.inv(pose)
        no_points = np.zeros((0, 2)), np.zeros(0, dtype=int)
        images[i] = parsing.Image(i, parsing.rotmat2qvec(w2c[:3, :3]), w2c[:3, 3], 3, name, *no_points)
    if suffix == ".bin":
        parsing.write_cameras_binary(cameras, folder / "cameras.bin")
        parsing.write_images_binary(images, folder / "images.bin")
    else:
        parsing.write_cameras_text(cameras, folder / "cameras.txt")
        parsing.write_images_text(images, folder / "images.txt")

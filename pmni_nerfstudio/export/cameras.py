# SPDX-License-Identifier: Apache-2.0
"""Refined cameras of all views in the data's world, as other tools read them.

`poses.npy`: (N, 4, 4) float64, camera-to-world, OpenCV axes, rotations orthonormal, positions in the data's units.
`cameras_refined.npz`: the layout of cameras_sphere.npz, to put in its place.
`transforms.json`: nerfstudio's, for `ns-train METHOD nerfstudio-data` and whatever else reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.images import read_mask
from pmni_nerfstudio.data.resample import resample_intrinsics
from pmni_nerfstudio.data.scene import Scene, write_cameras
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.transforms import flip_camera_axes, orthonormalized, transform_poses

POSES = "poses.npy"
CAMERAS = "cameras_refined.npz"
TRANSFORMS = "transforms.json"


def write_refined_cameras(folder: Path, scene: Scene, c2w: np.ndarray) -> list[Path]:
    """Write the three files named above, each atomically.

    Args:
        folder: that exists.
        scene: what the cameras see; its folder still has to be there, since the files' own size is read from a mask.
        c2w: (N, 4, 4) of all views in the scene's order, camera to unit-sphere world, OpenCV axes.

    Returns:
        The files.
    """
    c2w = orthonormalized(c2w)
    K, width, height = file_pinholes(scene)
    poses = transform_poses(scene.world_from_unit, c2w)
    with atomic_path(folder / POSES) as temporary:
        np.save(temporary, poses)
    write_cameras(folder / CAMERAS, K, c2w, scene.world_from_unit)
    with atomic_path(folder / TRANSFORMS) as temporary:
        frames = transforms(scene, poses, K, width, height, folder)
        temporary.write_text(json.dumps(frames, indent=1) + "\n", encoding="utf-8")
    return [folder / POSES, folder / CAMERAS, folder / TRANSFORMS]


def all_poses(scene: Scene, views: Sequence[int], refined: np.ndarray) -> np.ndarray:
    """Poses of all views: the refined ones of the training views, the given ones of those held out.

    Args:
        scene: all its views.
        views: indices of the n training views in the scene.
        refined: (n, 4, 4), camera to unit-sphere world, OpenCV axes.

    Returns:
        (N, 4, 4), likewise.

    Raises:
        PmniError: the scene has no poses, and not all of its views were trained on.
    """
    if scene.c2w is None:
        if len(views) < scene.num_views:
            raise PmniError(
                f"{scene.root}: nothing is known of the poses of the {scene.num_views - len(views)} views that were "
                "held out of training, since the scene has none: train on all views"
            )
        return refined
    c2w = scene.c2w.copy()
    c2w[list(views)] = refined
    return c2w


def file_pinholes(scene: Scene) -> tuple[np.ndarray, int, int]:
    """Intrinsics (N, 3, 3), width and height of the maps as they are in the files, before any resampling."""
    height, width = read_mask(scene.mask_files[0]).shape
    return resample_intrinsics(scene.K, (scene.width, scene.height), (width, height)), width, height


def transforms(scene: Scene, poses: np.ndarray, K: np.ndarray, width: int, height: int, folder: Path) -> dict:
    """What nerfstudio's transforms.json holds: OpenGL axes, pixel centres at +0.5, paths from `folder`.

    Args:
        scene: of the N views.
        poses: (N, 4, 4), camera to the data's world, OpenCV axes.
        K: (N, 3, 3) of images of width x height pixels, pixel centres at integers.
        width: in pixels.
        height: in pixels.
        folder: where the file goes.
    """
    pictures = _pictures(scene, width, height)
    frames = [
        {
            "file_path": _path_from(folder, pictures[i]),
            "mask_path": _path_from(folder, scene.mask_files[i]),
            "fl_x": K[i, 0, 0],
            "fl_y": K[i, 1, 1],
            "cx": K[i, 0, 2] + 0.5,
            "cy": K[i, 1, 2] + 0.5,
            "transform_matrix": flip_camera_axes(poses[i]).tolist(),
        }
        for i in range(scene.num_views)
    ]
    return {"camera_model": "OPENCV", "w": width, "h": height, "frames": frames}


def _pictures(scene: Scene, width: int, height: int) -> tuple[Path, ...]:
    """The photographs where there are any that fit the intrinsics, else the normal maps."""
    images = scene.image_files
    if images is None or any(path.suffix.lower() == ".exr" for path in images):  # nerfstudio reads no EXR
        return scene.normal_files
    for path in images:
        with Image.open(path) as image:  # reads the header only
            if image.size != (width, height):
                return scene.normal_files
    return images


def _path_from(folder: Path, path: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()

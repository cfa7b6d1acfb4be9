# SPDX-License-Identifier: Apache-2.0
"""Camera files of a result, in the data world, as other tools read them.

`poses.npy`: (N, 4, 4) float64, camera-to-world, OpenCV axes, orthonormal rotations, positions in the data's units.
`cameras_refined.npz`: the layout of cameras_sphere.npz, so that it can replace that file.
`transforms.json`: nerfstudio's format, for `ns-train METHOD nerfstudio-data` and other tools that read it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from pmni_nerfstudio.data.atomic import atomic_path, write_json
from pmni_nerfstudio.data.camera_files import read_cameras, write_cameras
from pmni_nerfstudio.data.images import read_mask
from pmni_nerfstudio.data.resample import resample_intrinsics
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.transforms import flip_camera_axes, orthonormalized, transform_poses

POSES = "poses.npy"
CAMERAS = "cameras_refined.npz"
TRANSFORMS = "transforms.json"
_SAME_INTRINSICS_PX = 1e-3
"""Largest difference in pixels that the decomposition of a projection matrix may cause."""


def write_result_cameras(folder: Path, scene: Scene, c2w: Float[np.ndarray, "n 4 4"]) -> list[Path]:
    """Write poses.npy, cameras_refined.npz and transforms.json, each atomically.

    Args:
        folder: existing output folder.
        scene: the scene of the cameras; its folder must still exist, because the size of its files is read from a mask.
        c2w: poses of all views in the data world, OpenCV axes.

    Returns:
        The files written.
    """
    K, _ = file_intrinsics(scene)
    c2w = orthonormalized(c2w)
    with atomic_path(folder / POSES) as temporary:
        np.save(temporary, c2w)
    unit_c2w = transform_poses(np.linalg.inv(scene.world_from_unit), c2w)
    write_cameras(folder / CAMERAS, K, unit_c2w, scene.world_from_unit)
    write_json(folder / TRANSFORMS, nerfstudio_transforms(scene, c2w, folder))
    return [folder / POSES, folder / CAMERAS, folder / TRANSFORMS]


def data_world_poses(
    scene: Scene, views: Sequence[int], refined_c2w: Float[np.ndarray, "t 4 4"]
) -> Float[np.ndarray, "n 4 4"]:
    """Poses of all views in the data world: refined for the training views, given for the held-out views.

    Args:
        scene: the scene with all its views.
        views: indices of the training views in the scene.
        refined_c2w: poses of the training views in the unit-sphere world, OpenCV axes.

    Raises:
        PmniError: views were held out of training, and the scene has no poses for them.
    """
    if scene.c2w is not None:
        c2w = scene.c2w.copy()
        c2w[list(views)] = refined_c2w
    elif len(views) == scene.num_views:
        c2w = refined_c2w
    else:
        raise PmniError(
            f"{scene.root}: the poses of the {scene.num_views - len(views)} views that were held out of training are "
            "unknown, because the scene has no poses; train on all views"
        )
    return transform_poses(scene.world_from_unit, c2w)


def file_intrinsics(scene: Scene) -> tuple[Float[np.ndarray, "n 3 3"], list[tuple[int, int]]]:
    """Intrinsics, and width and height, of each view's maps in the scene's files, before any resampling."""
    files = scene.mask_files if scene.sizes is not None else scene.mask_files[:1]
    sizes = [(width, height) for height, width in (read_mask(path).shape for path in files)]
    if scene.sizes is None:
        return resample_intrinsics(scene.full_K, tuple(scene.facts.sizes[0]), sizes[0]), sizes * scene.num_views
    return np.stack([resample_intrinsics(*of_view) for of_view in zip(scene.full_K, scene.facts.sizes, sizes)]), sizes


def with_result_intrinsics(scene: Scene, folder: Path) -> Scene:
    """The scene with the intrinsics of a result, which registration may have refined.

    Args:
        scene: the scene of the result.
        folder: folder of the result; without a cameras_refined.npz the scene keeps its intrinsics.

    Raises:
        SceneError: cameras_refined.npz is broken or has another number of views.
    """
    path = folder / CAMERAS
    if not path.is_file():
        return scene
    _, sizes = file_intrinsics(scene)
    K = read_cameras(path, scene.num_views)[0]
    if scene.sizes is None:
        K = resample_intrinsics(K, sizes[0], (scene.width, scene.height))
    else:
        K = np.stack([resample_intrinsics(*of_view) for of_view in zip(K, sizes, scene.sizes)])
    unchanged = np.abs(K - scene.K).max() < _SAME_INTRINSICS_PX
    return scene if unchanged else replace(scene, K=K)


def nerfstudio_transforms(scene: Scene, c2w: Float[np.ndarray, "n 4 4"], folder: Path) -> dict:
    """Contents of nerfstudio's transforms.json: OpenGL axes, pixel centers at +0.5, paths relative to the file.

    Args:
        scene: the scene of the cameras.
        c2w: poses of all views in the data world, OpenCV axes.
        folder: folder of the file.
    """
    K, sizes = file_intrinsics(scene)
    images = _images(scene, sizes)
    alike = len(set(sizes)) == 1
    frames = [
        {
            "file_path": _relative_path(folder, images[i]),
            "mask_path": _relative_path(folder, scene.mask_files[i]),
            "fl_x": K[i, 0, 0],
            "fl_y": K[i, 1, 1],
            "cx": K[i, 0, 2] + 0.5,
            "cy": K[i, 1, 2] + 0.5,
            **({} if alike else {"w": sizes[i][0], "h": sizes[i][1]}),
            "transform_matrix": flip_camera_axes(c2w[i]).tolist(),
        }
        for i in range(scene.num_views)
    ]
    common = {"w": sizes[0][0], "h": sizes[0][1]} if alike else {}
    return {"camera_model": "OPENCV", **common, "frames": frames}


def _images(scene: Scene, sizes: Sequence[tuple[int, int]]) -> tuple[Path, ...]:
    """The scene's photographs if the intrinsics fit all of them, else its normal maps."""
    images = scene.image_files
    if images is None or any(path.suffix.lower() == ".exr" for path in images):  # nerfstudio cannot read EXR
        return scene.normal_files
    for path, size in zip(images, sizes):
        with Image.open(path) as image:  # reads only the header
            if image.size != size:
                return scene.normal_files
    return images


def _relative_path(folder: Path, path: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()

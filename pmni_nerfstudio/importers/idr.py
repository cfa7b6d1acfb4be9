# SPDX-License-Identifier: Apache-2.0
"""Cameras of IDR's layout beside maps: NeuS and DTU (image/, mask/), RNb-NeuS (normal/, albedo/, mask/), MonoSDF.

cameras_sphere.npz or cameras.npz has world_mat_i = K [R | t] and, mostly, scale_mat_i. Its numbers count the sorted files;
where the files are named by numbers from 0, these. RNb-NeuS's normals have x right, y up, z to the viewer (its reader
flips y and z of value * 2 - 1), MonoSDF's are OpenCV's; those beside NeuS's data are told from the maps.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.camera_files import LARGEST, decompose_projection
from pmni_nerfstudio.data.npz import read_npz
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.importers.file_matching import axes_of, find_images, find_masks, match, need_normals
from pmni_nerfstudio.importers.source import Axes, Format, Frame, Options, Prepared
from pmni_nerfstudio.importers.view_maps import has_cutout

_FILES = ("cameras_sphere.npz", "cameras.npz", "cameras_large.npz")
_MATRIX_BYTES = 1 << 20


def recognise(folder: Path) -> bool:
    """Whether there are cameras of this layout."""
    return _camera_file(folder) is not None


def is_monosdf(folder: Path) -> bool:
    """Whether there are cameras of this layout and MonoSDF's maps."""
    return recognise(folder) and any(folder.glob("*_normal.npy"))


def is_rnb(folder: Path) -> bool:
    """Whether there are cameras of this layout and RNb-NeuS's folders."""
    return (folder / "cameras.npz").is_file() and (folder / "normal").is_dir() and not (folder / "image").is_dir()


def read_neus(folder: Path, options: Options) -> Prepared:
    """NeuS, IDR or DTU with normal maps beside."""
    normals = need_normals(folder, options.normals)
    return _read(folder, normals, "NeuS/IDR cameras", axes_of(normals))


def read_rnb(folder: Path, options: Options) -> Prepared:
    """RNb-NeuS."""
    images = {path.stem: path for path in sorted((folder / "albedo").glob("*.png"))}
    return _read(folder, need_normals(folder, options.normals or "normal"), "RNb-NeuS", "camera", images)


def read_monosdf(folder: Path, options: Options) -> Prepared:
    """MonoSDF, its normals alone: its depths have an unknown shift."""
    normals = need_normals(folder, options.normals)
    return _read(folder, normals, "MonoSDF (its depths are left: they have an unknown shift)", "opencv")


def _read(
    folder: Path, normals: dict[str, Path], said: str, axes: Axes | None, images: dict[str, Path] | None = None
) -> Prepared:
    path = _camera_file(folder)
    if path is None:
        raise PmniError(f"{folder}: has none of {', '.join(_FILES)}: it is no folder of NeuS's layout")
    arrays = read_npz(path, re.compile(r"(world|scale)_mat_\d+").fullmatch, _MATRIX_BYTES)
    numbers = _numbers(path, arrays, list(normals))
    masks, images = find_masks(folder), find_images(folder) if images is None else images
    frames = []
    for name, file in normals.items():
        world_mat = _matrix(path, f"world_mat_{numbers[name]}", arrays)
        singular = np.linalg.svd(world_mat[:3, :3], compute_uv=False)
        if singular[2] <= 1e-10 * singular[0]:
            raise SceneError(f"{path}: world_mat_{numbers[name]} is not invertible: it has to be K [R | t]")
        K, c2w = decompose_projection(world_mat[:3] / singular[0])
        mask = match(name, masks)
        if masks and mask is None:
            raise PmniError(f"{folder}: has no mask of the view {name}, of {file}: add it, or take the view out")
        if mask is None and has_cutout(file):
            mask = file
        frames.append(Frame(name, file, K, mask, c2w=c2w, image=match(name, images)))
    return Prepared(f"{said}, {path.name}", tuple(frames), axes, _scale(path, arrays, list(numbers.values())))


def _camera_file(folder: Path) -> Path | None:
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def _numbers(path: Path, arrays: dict[str, np.ndarray], names: list[str]) -> dict[str, int]:
    """Which camera each view has."""
    cameras = {int(name.removeprefix("world_mat_")) for name in arrays if name.startswith("world_mat_")}
    if all(name.isdecimal() for name in names) and {int(name) for name in names} <= cameras:
        return {name: int(name) for name in names}
    if len(cameras) != len(names):
        raise SceneError(
            f"{path}: holds {len(cameras)} cameras (world_mat_i) for {len(names)} normal maps, whose names are no "
            "numbers of cameras: there has to be one for each"
        )
    return dict(zip(sorted(names), sorted(cameras), strict=True))  # as NeuS sorts them, 10 before 2


def _scale(path: Path, arrays: dict[str, np.ndarray], numbers: list[int]) -> np.ndarray | None:
    """The similarity that all views share, or None without one."""
    if not any(name.startswith("scale_mat_") for name in arrays):
        return None
    first = _matrix(path, f"scale_mat_{numbers[0]}", arrays)
    for number in numbers[1:]:
        if not np.allclose(_matrix(path, f"scale_mat_{number}", arrays), first, rtol=1e-5):
            raise SceneError(
                f"{path}: scale_mat_{number} differs from scale_mat_{numbers[0]}: all views need the same unit sphere"
            )
    block = first[:3, :3]
    square = np.trace(block.T @ block) / 3
    if np.abs(block.T @ block - square * np.eye(3)).max() > 1e-4 * square or np.linalg.det(block) <= 0:
        raise SceneError(f"{path}: scale_mat_{numbers[0]} is no uniform positive scale and shift: write it so")
    return first


def _matrix(path: Path, name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    array = arrays.get(name)
    if array is None:
        raise SceneError(f"{path}: has no {name}: each view needs one")
    if array.shape not in ((4, 4), (3, 4)) or array.dtype.kind not in "fiu" or not (np.abs(array) < LARGEST).all():
        raise SceneError(f"{path}: {name} is no 4x4 array of finite floats: write that camera again")
    matrix = np.eye(4)
    matrix[: len(array)] = array
    return matrix


NEUS = Format(recognise, read_neus)
RNB_NEUS = Format(is_rnb, read_rnb)
MONOSDF = Format(is_monosdf, read_monosdf)

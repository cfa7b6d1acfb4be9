# SPDX-License-Identifier: Apache-2.0
"""The layout of IDR: NeuS and DTU (image/, mask/), RNb-NeuS (normal/, albedo/, mask/) and MonoSDF.

cameras_sphere.npz or cameras.npz holds world_mat_i = K [R | t] and usually scale_mat_i; which view i is follows from the
names of the files (data/camera_order.py). Normals of RNb-NeuS have x right, y up, z towards the
viewer, those of MonoSDF have OpenCV axes; for the others the axes are estimated from the maps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.camera_files import LARGEST, decompose_projection
from pmni_nerfstudio.data.camera_order import candidate_orders, choose_order
from pmni_nerfstudio.data.npz import read_npz
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.importers.camera_fit import CameraFit
from pmni_nerfstudio.importers.file_matching import match_files, view_names
from pmni_nerfstudio.importers.map_folders import FoundMaps, find_images, find_masks, require_normals
from pmni_nerfstudio.importers.source import Axes, Format, Frame, ImportOptions, Source
from pmni_nerfstudio.importers.view_maps import masks_of_views

_CAMERA_FILES = ("cameras_sphere.npz", "cameras.npz", "cameras_large.npz")
_MATRIX_BYTES = 1 << 20


def is_neus(folder: Path) -> bool:
    """Whether there is a camera file of this layout."""
    return _camera_file(folder) is not None


def is_monosdf(folder: Path) -> bool:
    """Whether there are a camera file of this layout and MonoSDF's normal maps."""
    return is_neus(folder) and any(folder.glob("*_normal.npy"))


def is_rnb(folder: Path) -> bool:
    """Whether there are a camera file and folders as in RNb-NeuS."""
    return (folder / "cameras.npz").is_file() and (folder / "normal").is_dir() and not (folder / "image").is_dir()


def read_neus(folder: Path, options: ImportOptions) -> Source:
    """Read a folder of NeuS, IDR or DTU to which normal maps were added."""
    found = require_normals(folder, options.normals)
    return _read(folder, found, "NeuS/IDR cameras", options.axes or found.axes, find_images(folder).files)


def read_rnb(folder: Path, options: ImportOptions) -> Source:
    """Read a folder of RNb-NeuS."""
    images = {path.stem: path for path in sorted((folder / "albedo").glob("*.png"))}
    found = require_normals(folder, options.normals)
    return _read(folder, found, "RNb-NeuS", options.axes or "camera", images)


def read_monosdf(folder: Path, options: ImportOptions) -> Source:
    """Read a folder of MonoSDF without its depth maps, whose scale and shift are unknown."""
    description = "MonoSDF without its depth maps, whose scale and shift are unknown"
    found, images = require_normals(folder, options.normals), find_images(folder).files
    return _read(folder, found, description, options.axes or "opencv", images)


def _read(folder: Path, found: FoundMaps, description: str, axes: Axes | None, images: dict[str, Path]) -> Source:
    path = _camera_file(folder)
    if path is None:
        raise PmniError(f"{folder}: has none of {', '.join(_CAMERA_FILES)}; add the cameras in the layout of NeuS")
    arrays = read_npz(path, re.compile(r"(world|scale)_mat_\d+").fullmatch, _MATRIX_BYTES)
    cameras = {int(name.removeprefix("world_mat_")) for name in arrays if name.startswith("world_mat_")}
    masks, keys, normals = find_masks(folder), list(found.files), list(found.files.values())
    photographs = match_files(keys, images)
    mask_files = masks_of_views(folder, [(key,) for key in keys], masks.files, normals, photographs)
    candidates = candidate_orders(keys, cameras, {"photographs": list(images), "masks": list(masks.files)})
    if not candidates:
        raise SceneError(
            f"{path}: holds {len(cameras)} cameras (world_mat_i) for {len(keys)} normal maps, whose names are not "
            "camera numbers; give each normal map one camera"
        )

    names = view_names(keys)

    def frames_of(numbers: Sequence[int]) -> list[Frame]:
        made = []
        for i, number in enumerate(numbers):
            K, c2w = _decompose(path, number, arrays)
            made.append(Frame(names[i], normals[i], K, mask_files[i], c2w=c2w, image=photographs[i]))
        return made

    fit = CameraFit(axes)
    order, warnings = choose_order(path, candidates, lambda numbers: fit.measure(frames_of(numbers)))
    unused = sorted(cameras - set(order.cameras))
    if unused:
        warnings.append(
            f"{path}: {len(unused)} of {len(cameras)} cameras (first world_mat_{unused[0]}) have no normal map and were left "
            "out"
        )
    return Source(
        f"{description}, {path.name}",
        tuple(frames_of(order.cameras)),
        axes,
        _scale(path, arrays, list(order.cameras)),
        warnings=(*found.warnings, *masks.warnings, *warnings),
    )


def _decompose(path: Path, number: int, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """K (3, 3) and c2w (4, 4) of a numbered camera."""
    world_mat = _matrix(path, f"world_mat_{number}", arrays)
    singular = np.linalg.svd(world_mat[:3, :3], compute_uv=False)
    if singular[2] <= 1e-10 * singular[0]:
        raise SceneError(f"{path}: world_mat_{number} is not invertible; write K [R | t]")
    return decompose_projection(world_mat[:3] / singular[0])


def _camera_file(folder: Path) -> Path | None:
    return next((folder / name for name in _CAMERA_FILES if (folder / name).is_file()), None)


def _scale(path: Path, arrays: dict[str, np.ndarray], numbers: list[int]) -> np.ndarray | None:
    """Similarity (4, 4) from the unit sphere to the world, which all views share; None if the file has none."""
    if not any(name.startswith("scale_mat_") for name in arrays):
        return None
    first = _matrix(path, f"scale_mat_{numbers[0]}", arrays)
    for number in numbers[1:]:
        if not np.allclose(_matrix(path, f"scale_mat_{number}", arrays), first, rtol=1e-5):
            raise SceneError(
                f"{path}: scale_mat_{number} differs from scale_mat_{numbers[0]}; give all views the same unit sphere"
            )
    block = first[:3, :3]
    square = np.trace(block.T @ block) / 3
    if np.abs(block.T @ block - square * np.eye(3)).max() > 1e-4 * square or np.linalg.det(block) <= 0:
        raise SceneError(f"{path}: scale_mat_{numbers[0]} is not a uniform positive scale and a translation")
    return first


def _matrix(path: Path, name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """A matrix (4, 4) of the camera file."""
    array = arrays.get(name)
    if array is None:
        raise SceneError(f"{path}: has no {name}; add one for each view")
    if array.shape not in ((4, 4), (3, 4)) or array.dtype.kind not in "fiu" or not (np.abs(array) < LARGEST).all():
        raise SceneError(f"{path}: {name} is not a 4x4 array of finite floats; write that camera again")
    matrix = np.eye(4)
    matrix[: len(array)] = array
    return matrix


NEUS = Format(is_neus, read_neus)
RNB_NEUS = Format(is_rnb, read_rnb)
MONOSDF = Format(is_monosdf, read_monosdf)

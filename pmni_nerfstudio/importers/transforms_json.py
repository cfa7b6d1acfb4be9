# SPDX-License-Identifier: Apache-2.0
"""transforms.json of nerfstudio, and of NeRF's Blender scenes: perspective and fisheye cameras, OpenGL axes.

The normal map of a frame is its normal_path (or normal_file_path), or else file_path itself if that lies in a folder
normal*/, or else the file of the same name in normal*/. The world is that of transform_matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pmni_nerfstudio.data.camera_files import LARGEST
from pmni_nerfstudio.data.files import check_file, printable, read_json_object
from pmni_nerfstudio.data.images import NORMAL_SUFFIXES
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.transforms import flip_camera_axes
from pmni_nerfstudio.importers.posed_images import PosedImage, attach_maps, check_camera, find_image, pinhole
from pmni_nerfstudio.importers.source import Format, ImportOptions, Lens, Source
from pmni_nerfstudio.importers.view_maps import size_of

_FILES = ("transforms.json", "transforms_train.json")
_PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE", "FULL_OPENCV")
_FISHEYE = ("OPENCV_FISHEYE",)
_MAX_PATH_LENGTH = 4096
"""Linux's limit."""


def recognize(folder: Path) -> bool:
    """Whether there is a transforms.json."""
    return any((folder / name).is_file() for name in _FILES)


def read(folder: Path, options: ImportOptions) -> Source:
    """Read the cameras of all frames and find their maps."""
    path = next((folder / name for name in _FILES if (folder / name).is_file()), folder / _FILES[0])
    meta = read_json_object(path, "write it in nerfstudio's format")
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise SceneError(f"{path}: has no list of frames; write it in nerfstudio's format")
    images = [_image(path, i, {**meta, **frame}) for i, frame in enumerate(frames)]
    return attach_maps(folder, f"nerfstudio's {path.name}", images, options)


def _image(path: Path, index: int, frame: Mapping[str, Any]) -> PosedImage:
    """Camera and files of a frame, which has the file's common values as well."""
    file = frame.get("file_path")
    if not isinstance(file, str) or not 0 < len(file) < _MAX_PATH_LENGTH or not file.isprintable():
        raise SceneError(f"{path}: frame {index} has no valid file_path; write it in nerfstudio's format")
    model = frame.get("camera_model", "OPENCV")
    if model not in (*_PERSPECTIVE, *_FISHEYE):
        name = printable(str(model)[:40])
        raise SceneError(f"{path}: the camera model {name} of {file} is not supported; undistort the images first")
    matrix = np.eye(4)
    try:
        matrix[:3] = np.array(frame["transform_matrix"], dtype=np.float64)[:3]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SceneError(f"{path}: {file} has no 4x4 transform_matrix; write it in nerfstudio's format") from error
    size = (int(_number(path, frame, "w")), int(_number(path, frame, "h"))) if {"w", "h"} <= frame.keys() else None
    image, normals, mask = _files(path, file, frame)
    if size is None and (picture := normals or image) is not None:
        size = size_of(picture)
    if size is None or min(size) <= 0:
        raise SceneError(f"{path}: has no size (w and h, in pixels) of {file}; add it")
    K = _intrinsics(path, frame, size)
    c2w = flip_camera_axes(matrix)
    check_camera(path, file, K, c2w)
    return PosedImage(file, K, size, c2w, _lens(path, frame, model in _FISHEYE), image, normals, mask)


def _files(path: Path, file: str, frame: Mapping[str, Any]) -> tuple[Path | None, Path | None, Path | None]:
    """Photograph, normal map and mask that a frame names."""
    named = {}
    for kind, keys in (("normals", ("normal_path", "normal_file_path")), ("mask", ("mask_path",))):
        value = next((frame[key] for key in keys if isinstance(frame.get(key), str)), None)
        named[kind] = path.parent / value if value else None
        if value:
            check_file(path.parent / value)
    own = path.parent / file
    if named["normals"] is None and own.parent.name.startswith("normal") and own.suffix.lower() in NORMAL_SUFFIXES:
        check_file(own)
        return None, own, named["mask"]
    return find_image(path.parent, file), named["normals"], named["mask"]


def _intrinsics(path: Path, frame: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """K (3, 3) of a frame."""
    if "fl_x" in frame:
        fx = _number(path, frame, "fl_x")
    elif "camera_angle_x" in frame:
        fx = size[0] / 2 / np.tan(_number(path, frame, "camera_angle_x") / 2)
    else:
        raise SceneError(f"{path}: has neither fl_x nor camera_angle_x for {frame['file_path']}; add one of them")
    fy = _number(path, frame, "fl_y") if "fl_y" in frame else fx
    cx = _number(path, frame, "cx") if "cx" in frame else size[0] / 2
    cy = _number(path, frame, "cy") if "cy" in frame else size[1] / 2
    return pinhole(fx, fy, cx, cy)


def _lens(path: Path, frame: Mapping[str, Any], is_fisheye: bool) -> Lens:
    names = ("k1", "k2", "k3", "k4") if is_fisheye else ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
    coefficients = tuple(_number(path, frame, name) if name in frame else 0.0 for name in names)
    if not is_fisheye and "k4" in frame and not ("k5" in frame or frame.get("camera_model") == "FULL_OPENCV"):
        # In nerfstudio, k4 is the coefficient of r^8; in OpenCV, the first one of the denominator.
        if coefficients[5]:
            raise SceneError(f"{path}: k4 of {frame['file_path']} is not in OpenCV's model; undistort the images first")
    return Lens(coefficients, is_fisheye)


def _number(path: Path, frame: Mapping[str, Any], name: str) -> float:
    value = frame[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:
        raise SceneError(f"{path}: {name} of {frame['file_path']} is not a finite number; correct it")
    return float(value)


TRANSFORMS = Format(recognize, read)

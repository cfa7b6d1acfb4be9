# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's transforms.json (and Blender's, of NeRF): perspective and fisheye cameras, OpenGL axes.

A frame's normal map is what its normal_path (or normal_file_path) says, else the file of its name in normal*/, else
file_path itself if it lies in normal*/. The world is that of transform_matrix as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pmni_nerfstudio.data.camera_files import LARGEST
from pmni_nerfstudio.data.files import check_file, printable, reason
from pmni_nerfstudio.data.images import NORMAL_SUFFIXES
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.transforms import flip_camera_axes
from pmni_nerfstudio.importers.posed_images import (
    PosedImage,
    check_camera,
    find_image,
    join,
    pinhole,
)
from pmni_nerfstudio.importers.source import Format, Lens, Options, Prepared
from pmni_nerfstudio.importers.view_maps import size_of

_NAMES = ("transforms.json", "transforms_train.json")
_PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE", "FULL_OPENCV")
_FISHEYE = ("OPENCV_FISHEYE",)
_MAX_BYTES = 1 << 28
_LONGEST_NAME = 4096
"""Of a path, as Linux has it."""


def recognise(folder: Path) -> bool:
    """Whether there is a transforms.json."""
    return any((folder / name).is_file() for name in _NAMES)


def read(folder: Path, options: Options) -> Prepared:
    """Cameras of all frames, and their maps."""
    path = next((folder / name for name in _NAMES if (folder / name).is_file()), folder / _NAMES[0])
    meta = _read_json(path)
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise SceneError(f"{path}: has no list of frames: write it as nerfstudio does")
    images = [_image(path, i, {**meta, **frame}) for i, frame in enumerate(frames)]
    return join(folder, f"nerfstudio's {path.name}", images, options)


def _read_json(path: Path) -> dict[str, Any]:
    check_file(path)
    if path.stat().st_size > _MAX_BYTES:
        raise SceneError(f"{path}: has {path.stat().st_size:,} bytes: no list of cameras is as long")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SceneError(f"{path}: can't be read as JSON ({reason(error)}): write it again") from error
    if not isinstance(meta, dict):
        raise SceneError(f"{path}: holds no JSON object: write it as nerfstudio does")
    return meta


def _image(path: Path, index: int, frame: Mapping[str, Any]) -> PosedImage:
    file = frame.get("file_path")
    if not isinstance(file, str) or not 0 < len(file) < _LONGEST_NAME or not file.isprintable():
        raise SceneError(f"{path}: frame {index} has no file_path: write it as nerfstudio does")
    model = frame.get("camera_model", "OPENCV")
    if model not in (*_PERSPECTIVE, *_FISHEYE):
        said = printable(str(model)[:40])
        raise SceneError(f"{path}: the camera model {said} of {file} isn't read: undistort its images to OPENCV first")
    matrix = np.eye(4)
    try:
        matrix[:3] = np.array(frame["transform_matrix"], dtype=np.float64)[:3]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SceneError(f"{path}: {file} has no 4x4 transform_matrix: write it as nerfstudio does") from error
    size = (int(_number(path, frame, "w")), int(_number(path, frame, "h"))) if {"w", "h"} <= frame.keys() else None
    image, normals, mask = _files(path, file, frame)
    if size is None and (picture := normals or image) is not None:
        size = size_of(picture)
    if size is None or min(size) <= 0:
        raise SceneError(f"{path}: says no size (w and h) of {file}: add it, in pixels")
    K = _intrinsics(path, frame, size)
    c2w = flip_camera_axes(matrix)
    check_camera(path, file, K, c2w)
    return PosedImage(file, K, size, c2w, _lens(path, frame, model in _FISHEYE), image, normals, mask)


def _files(path: Path, file: str, frame: Mapping[str, Any]) -> tuple[Path | None, Path | None, Path | None]:
    """The frame's photograph, normal map and mask, as far as it names them."""
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
    if "fl_x" in frame:
        fx = _number(path, frame, "fl_x")
    elif "camera_angle_x" in frame:
        fx = size[0] / 2 / np.tan(_number(path, frame, "camera_angle_x") / 2)
    else:
        raise SceneError(f"{path}: has neither fl_x nor camera_angle_x for {frame['file_path']}: add one")
    fy = _number(path, frame, "fl_y") if "fl_y" in frame else fx
    cx = _number(path, frame, "cx") if "cx" in frame else size[0] / 2
    cy = _number(path, frame, "cy") if "cy" in frame else size[1] / 2
    return pinhole(fx, fy, cx, cy)


def _lens(path: Path, frame: Mapping[str, Any], is_fisheye: bool) -> Lens:
    names = ("k1", "k2", "k3", "k4") if is_fisheye else ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
    coefficients = tuple(_number(path, frame, name) if name in frame else 0.0 for name in names)
    if not is_fisheye and "k4" in frame and not ("k5" in frame or frame.get("camera_model") == "FULL_OPENCV"):
        # nerfstudio's k4 is the next radial power, OpenCV's the first of a denominator
        if coefficients[5]:
            raise SceneError(f"{path}: k4 of {frame['file_path']} isn't OpenCV's: undistort the images first")
    return Lens(coefficients, is_fisheye)


def _number(path: Path, frame: Mapping[str, Any], name: str) -> float:
    value = frame[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:
        raise SceneError(f"{path}: {name} of {frame['file_path']} is no finite number: write it again")
    return float(value)


TRANSFORMS = Format(recognise, read)

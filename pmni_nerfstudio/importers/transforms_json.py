# SPDX-License-Identifier: Apache-2.0
"""transforms.json of nerfstudio, NeRF's Blender scenes and NeuS2: perspective and fisheye cameras, OpenGL axes.

The normal map of a frame is its normal_path (or normal_file_path), or else file_path itself if that lies in a folder
normal*/, or else the file beside it that is named after it (r_0_normal_0001.png beside r_0.png), or else
the file of the same name in normal*/. The world is that of transform_matrix.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pmni_nerfstudio.data.camera_files import LARGEST
from pmni_nerfstudio.data.files import check_file, printable, read_json_object
from pmni_nerfstudio.data.images import NORMAL_SUFFIXES
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.transforms import flip_camera_axes
from pmni_nerfstudio.importers.camera_fit import CameraFit
from pmni_nerfstudio.importers.file_matching import match_files, plain_path, without_suffix
from pmni_nerfstudio.importers.map_folders import require_normals
from pmni_nerfstudio.importers.posed_images import PosedImage, attach_maps, check_camera, find_image, pinhole
from pmni_nerfstudio.importers.source import Format, ImportOptions, Lens, Source
from pmni_nerfstudio.importers.view_maps import size_of

_WHOLE = ("transforms.json", "transform.json")
"""Files of all views: nerfstudio's and NeuS2's."""
_PARTS = ("transforms_train.json", "transforms_val.json", "transforms_test.json")
"""Files of some views each: NeRF's."""
_PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE", "FULL_OPENCV")
_FISHEYE = ("OPENCV_FISHEYE",)
_CLEAR_MARGIN = 0.01
"""Difference of scores from which the maps decide clearly."""
_MAX_PATH_LENGTH = 4096
"""Linux's limit."""


def recognize(folder: Path) -> bool:
    """Whether there is a transforms.json, or a transforms_train.json, or one of similar name."""
    return any((folder / name).is_file() for name in (*_WHOLE, *_PARTS))


def read(folder: Path, options: ImportOptions) -> Source:
    """Read the cameras of all frames and find their maps."""
    whole = [folder / name for name in _WHOLE if (folder / name).is_file()]
    parts = [folder / name for name in _PARTS if (folder / name).is_file()]
    files = whole[:1] or parts or [folder / _WHOLE[0]]
    if len(files) > 1 and _share_names(files):
        files = _with_most_maps(folder, files, options)
    source = _with_angle_of_fitting_side(folder, files, options)
    others = [path.name for path in (*whole, *parts) if path not in files]
    if not others:
        return source
    warning = f"{files[0]}: was read, and not {', '.join(others)} beside it; remove the one that is wrong"
    return replace(source, warnings=(warning, *source.warnings))


def _share_names(files: Sequence[Path]) -> bool:
    """Whether files of some views each name images of different folders alike, such as train/r_0 and test/r_0."""
    stems = [plain_path(image.file).rsplit("/", 1)[-1] for path in files for image in _read_file(path)]
    return len(set(stems)) < len(stems)


def _with_most_maps(folder: Path, files: list[Path], options: ImportOptions) -> list[Path]:
    """All files, or the one alone for which more normal maps are found."""
    own = any(image.normals is not None for path in files for image in _read_file(path))
    maps = {} if own and options.normals is None else require_normals(folder, options.normals).files

    def count(chosen: Sequence[Path]) -> int:
        images = [image for path in chosen for image in _read_file(path)]
        if not maps:
            return sum(image.normals is not None for image in images)
        return sum(file is not None for file in match_files([plain_path(image.file) for image in images], maps))

    return max([files, *([path] for path in files)], key=count)


def _with_angle_of_fitting_side(folder: Path, files: Sequence[Path], options: ImportOptions) -> Source:
    """Source with `camera_angle_x` of pictures in portrait format as the angle of the side that fits the maps.

    Blender's angle_x belongs to the longer side of the picture if the camera's sensor fit is automatic, its default.
    """
    description = f"nerfstudio's {', '.join(path.name for path in files)}"

    def read_as(of_longer_side: bool) -> Source:
        images = [image for path in files for image in _read_file(path, of_longer_side)]
        return attach_maps(folder, description, images, options)

    by_width, by_height = read_as(False), read_as(True)
    if all(np.array_equal(a.K, b.K) for a, b in zip(by_width.frames, by_height.frames, strict=True)):
        return by_width
    fit = CameraFit(options.axes or by_width.axes)
    width_score, height_score = fit.measure(by_width.frames).score, fit.measure(by_height.frames).score
    chosen, side = (by_height, "height") if height_score > width_score else (by_width, "width")
    remark = "" if abs(height_score - width_score) > _CLEAR_MARGIN else ", though hardly better than the other"
    warning = (
        f"{files[0]}: camera_angle_x of pictures in portrait format belongs to the {side}, which fits the maps better"
        f"{remark} (width {width_score:.3f}, height {height_score:.3f} of 1.9); write fl_x in pixels to make it definite"
    )
    return replace(chosen, warnings=(*chosen.warnings, warning))


def _read_file(path: Path, of_longer_side: bool = False) -> list[PosedImage]:
    """Cameras and files of all frames of a file.

    Args:
        path: camera file.
        of_longer_side: whether an angle without a focal length belongs to the longer side, instead of the width.
    """
    meta = read_json_object(path, "write it in nerfstudio's format")
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise SceneError(f"{path}: has no list of frames; write it in nerfstudio's format")
    return [_image(path, i, {**meta, **frame}, of_longer_side) for i, frame in enumerate(frames)]


def _image(path: Path, index: int, frame: Mapping[str, Any], of_longer_side: bool) -> PosedImage:
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
    K = _intrinsics(path, frame, size, max(size) if of_longer_side else size[0])
    # NeuS2's files have OpenCV axes if this key is present, even with the value false.
    c2w = matrix if "from_na" in frame else flip_camera_axes(matrix)
    check_camera(path, file, K, c2w)
    return PosedImage(file, K, size, c2w, _lens(path, frame, model in _FISHEYE), image, normals, mask)


def _files(path: Path, file: str, frame: Mapping[str, Any]) -> tuple[Path | None, Path | None, Path | None]:
    """Photograph, normal map and mask that a frame names."""
    named = {}
    for kind, keys in (("normals", ("normal_path", "normal_file_path")), ("mask", ("mask_path",))):
        value = next((frame[key] for key in keys if isinstance(frame.get(key), str)), None)
        named[kind] = _named_file(path.parent, value) if value else None
    own = path.parent / file.replace("\\", "/")
    if named["normals"] is None and own.parent.name.startswith("normal") and own.suffix.lower() in NORMAL_SUFFIXES:
        check_file(own)
        return None, own, named["mask"]
    if named["normals"] is None:
        named["normals"] = _normals_beside(own)
    return find_image(path.parent, file), named["normals"], named["mask"]


def _normals_beside(image: Path) -> Path | None:
    """Normal map that lies beside an image and is named after it, as r_0_normal_0001.png or r_0_normal.png beside r_0.png.

    Blender's File Output node adds the number of the frame.
    """
    stem = without_suffix(image.name)
    for name in (f"{stem}_normal", f"{stem}_normals", f"{stem}_normal_0001", f"{stem}_normals_0001"):
        for suffix in NORMAL_SUFFIXES:
            path = image.with_name(name + suffix)
            if os.path.isfile(path):  # unlike Path.is_file, false for a name that is too long
                return path
    return None


def _named_file(root: Path, name: str) -> Path:
    """A file that a frame names, as written by any system; an absolute path of another machine counts from its end."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    for path in (root / name, *(root.joinpath(*parts[start:]) for start in range(len(parts)))):
        if path.is_file():
            return path
    check_file(root / name)
    return root / name


def _intrinsics(path: Path, frame: Mapping[str, Any], size: tuple[int, int], angle_side: int) -> np.ndarray:
    """K (3, 3) of a frame; `angle_side` is the side in pixels that camera_angle_x belongs to."""
    if "intrinsic_matrix" in frame:
        return _intrinsic_matrix(path, frame)
    if "fl_x" in frame:
        fx = _number(path, frame, "fl_x")
    elif "camera_angle_x" in frame:
        side = size[0] if "camera_angle_y" in frame else angle_side
        fx = side / 2 / np.tan(_number(path, frame, "camera_angle_x") / 2)
    else:
        raise SceneError(f"{path}: has neither fl_x nor camera_angle_x for {frame['file_path']}; add one of them")
    if "fl_y" in frame:
        fy = _number(path, frame, "fl_y")
    elif "camera_angle_y" in frame and "fl_x" not in frame:
        fy = size[1] / 2 / np.tan(_number(path, frame, "camera_angle_y") / 2)
    else:
        fy = fx
    cx = _number(path, frame, "cx") if "cx" in frame else size[0] / 2
    cy = _number(path, frame, "cy") if "cy" in frame else size[1] / 2
    return pinhole(fx, fy, cx, cy)


def _intrinsic_matrix(path: Path, frame: Mapping[str, Any]) -> np.ndarray:
    """K (3, 3) of a frame of NeuS2."""
    try:
        K = np.array(frame["intrinsic_matrix"], dtype=np.float64)[:3, :3]
    except (TypeError, ValueError, IndexError) as error:
        raise SceneError(f"{path}: intrinsic_matrix of {frame['file_path']} is not a matrix; correct it") from error
    if K.shape != (3, 3) or not np.isfinite(K).all() or abs(K[0, 1]) > 1e-3 * abs(K[0, 0]):
        raise SceneError(f"{path}: intrinsic_matrix of {frame['file_path']} is no 3x3 matrix without skew; correct it")
    return pinhole(K[0, 0], K[1, 1], K[0, 2], K[1, 2])


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

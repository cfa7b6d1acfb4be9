# SPDX-License-Identifier: Apache-2.0
"""Cameras of Meshroom (AliceVision's SfMData: cameras.sfm, sfm.json), with normal maps named like the images.

World and units are the file's. Rotations are stored column by column as world to camera, so that row by row they are
camera to world; camera axes are OpenCV's. The meaning of the intrinsics depends on the version of the file
(AliceVision's src/aliceVision/sfmDataIO/jsonIO.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pmni_nerfstudio.data.files import entries, printable, read_json_object, reason
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.importers.posed_images import PosedImage, attach_maps, check_camera, find_image, pinhole
from pmni_nerfstudio.importers.source import Format, ImportOptions, Lens, Source

_HEAD_BYTES = 1 << 16
_REMEDY = "export the cameras again with Meshroom, as JSON"
_RADIAL = ("radial", "radial1", "radial3", "radialk1", "radialk3")
_BROWN = ("brown",)
_FISHEYE = ("fisheye", "fisheye4", "equidistant4")


def recognize(folder: Path) -> bool:
    """Whether there is a file of SfMData."""
    return bool(_find_files(folder))


def read(folder: Path, options: ImportOptions) -> Source:
    """Read the cameras of all views that have a pose."""
    files = _find_files(folder)
    if not files:
        raise SceneError(f"{folder}: has no cameras of Meshroom (cameras.sfm or sfm.json)")
    path = files[0]
    data = read_json_object(path, _REMEDY)
    try:
        posed, without_pose = _posed_images(folder, path, data)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise SceneError(f"{path}: can't be read as Meshroom's cameras ({reason(error)}); {_REMEDY}") from error
    if not posed:
        raise SceneError(f"{path}: holds no view with a pose; run Meshroom's StructureFromMotion, and take its output")
    warnings = []
    if without_pose:
        warnings.append(f"{path}: {len(without_pose)} views (first {without_pose[0]}) have no pose and were left out")
    if files[1:]:
        warnings.append(f"{path}: was read, and not {', '.join(other.name for other in files[1:])}")
    source = attach_maps(folder, f"Meshroom's {path.name}", posed, options)
    return replace(source, warnings=(*warnings, *source.warnings))


def _find_files(folder: Path) -> list[Path]:
    """Files of SfMData in a folder, binary Alembic files excluded."""
    found = []
    for path in entries(folder):
        if path.suffix.lower() in (".sfm", ".json") and path.is_file():
            with path.open("rb") as file:
                head = file.read(_HEAD_BYTES).replace(b"\0", b"")
            if b'"views"' in head and b"viewId" in head:
                found.append(path)
    return found


def _posed_images(folder: Path, path: Path, data: Mapping[str, Any]) -> tuple[list[PosedImage], list[str]]:
    """Views with a pose, and the names of those without."""
    version = tuple(int(part) for part in data.get("version", (1, 2, 6)))
    intrinsics = {str(part["intrinsicId"]): part for part in data.get("intrinsics", ())}
    poses = {str(part["poseId"]): part["pose"]["transform"] for part in data.get("poses", ())}
    posed, without_pose = [], []
    for view in data["views"]:
        name = printable(str(view["path"]))
        transform, intrinsic = poses.get(str(view["poseId"])), intrinsics.get(str(view.get("intrinsicId")))
        if transform is None or intrinsic is None:
            without_pose.append(name)
            continue
        if "rigId" in view and data.get("rigs"):
            raise SceneError(f"{path}: {name} belongs to a rig, which is not supported; reconstruct without rigs")
        c2w = np.eye(4)
        c2w[:3, :3] = np.array([float(value) for value in transform["rotation"]]).reshape(3, 3)
        c2w[:3, 3] = [float(value) for value in transform["center"]]
        K, size, lens = _intrinsics(path, intrinsic, version)
        check_camera(path, name, K, c2w)
        posed.append(PosedImage(name, K, size, c2w, lens, find_image(folder, name)))
    return posed, without_pose


def _intrinsics(
    path: Path, part: Mapping[str, Any], version: tuple[int, ...]
) -> tuple[np.ndarray, tuple[int, int], Lens]:
    """K (3, 3), size and distortion of an intrinsic, whose numbers may be text."""
    width, height = int(part["width"]), int(part["height"])
    if min(width, height) <= 0:
        raise SceneError(f"{path}: an intrinsic has no pixels; {_REMEDY}")
    if version < (1, 2, 2):
        focal = part["pxFocalLength"]
        fx, fy = (float(value) for value in focal) if isinstance(focal, (list, tuple)) else (float(focal),) * 2
    else:
        pixels = float(part["focalLength"]) / float(part.get("sensorWidth", 36)) * width
        ratio = float(part.get("pixelRatio", 1)) or 1.0
        if version >= (1, 2, 11):
            fx, fy = pixels / ratio, pixels
        else:
            fx, fy = pixels, pixels / ratio if version < (1, 2, 5) else pixels * ratio
    point = [float(value) for value in part["principalPoint"]]
    if version >= (1, 2, 1):
        point = [point[0] + width / 2, point[1] + height / 2]
    return pinhole(fx, fy, point[0], point[1]), (width, height), _lens(path, part)


def _lens(path: Path, part: Mapping[str, Any]) -> Lens:
    """Distortion in OpenCV's models."""
    values = [float(value) for value in part.get("distortionParams") or part.get("fisheye4") or ()]
    kind = str(part.get("type", "pinhole")).lower()
    if kind in ("pinhole", "equidistant"):
        kind = str(part.get("distortionType", "none")).lower()
    if kind in _FISHEYE:
        return Lens(tuple((*values, 0.0, 0.0, 0.0, 0.0)[:4]), True)
    if not any(values):
        return Lens(())
    if kind in _RADIAL:
        k1, k2, k3 = (*values, 0.0, 0.0)[:3]
        return Lens((k1, k2, 0.0, 0.0, k3))
    if kind in _BROWN:
        k1, k2, k3, p1, p2 = (*values, 0.0, 0.0, 0.0, 0.0)[:5]
        return Lens((k1, k2, p1, p2, k3))
    raise SceneError(f"{path}: distortion of type {printable(kind)} is not supported; undistort the images first")


MESHROOM = Format(recognize, read)

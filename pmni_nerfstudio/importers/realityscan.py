# SPDX-License-Identifier: Apache-2.0
"""Cameras of RealityScan (formerly RealityCapture): XMP files beside the images, or its table of cameras (CSV).

XMP: rotations are world to camera, row by row, with OpenCV's camera axes, and positions are the cameras' centers. CSV
("internal/external camera parameters"): heading, pitch and roll in degrees, as nerfstudio's realitycapture_utils.py reads
them. In both, the focal length is that of 35 mm film, and principal points count from the middle of the image in units of
its longer side. World and units are those of the export.
"""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.data.camera_files import LARGEST
from pmni_nerfstudio.data.files import entries, printable, read_bytes, read_text, reason
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.transforms import flip_camera_axes
from pmni_nerfstudio.importers.posed_images import PosedImage, attach_maps, check_camera, find_image, pinhole
from pmni_nerfstudio.importers.source import Format, ImportOptions, Lens, Source
from pmni_nerfstudio.importers.view_maps import size_of

_NAMESPACE = "{http://www.capturingreality.com/ns/xcr/1.1#}"
_HEAD_BYTES = 1 << 14
_FILM_MM = 36.0
_COLUMNS = ("x", "y", "alt", "heading", "pitch", "roll", "f", "px", "py")
_RADIAL, _TANGENTIAL = ("k1", "k2", "k3", "k4"), ("t1", "t2")
_FOLDERS = ("", "images", "image", "xmp", "input")
_EXPORT = "export the cameras again with RealityScan"
_DISTORTIONS = ("perspective", "brown3", "brown3t2", "brown4", "brown4t2")
"""Names of XMP's distortion models by Brown, of which the first three radial coefficients are OpenCV's."""


def recognize(folder: Path) -> bool:
    """Whether there are XMP files with poses, or a table of cameras."""
    return _find_table(folder) is not None or bool(_find_xmp(folder))


def read(folder: Path, options: ImportOptions) -> Source:
    """Read the cameras of all images: of the table, or else of the XMP files."""
    table = _find_table(folder)
    if table is not None:
        return attach_maps(folder, f"RealityScan's {table.name}", _read_table(folder, table), options)
    files = _find_xmp(folder)
    if not files:
        raise SceneError(f"{folder}: has neither XMP files with poses nor a table of cameras; {_EXPORT}")
    posed = [image for image in (_read_xmp(folder, path) for path in files) if image is not None]
    if not posed:
        raise SceneError(
            f"{files[0].parent}: no XMP file holds a pose; {_EXPORT}, with poses, or read the maps without poses by --from plain"
        )
    return attach_maps(folder, f"RealityScan's {len(posed)} XMP files", posed, options)


def _find_table(folder: Path) -> Path | None:
    for path in entries(folder):
        if path.suffix.lower() == ".csv" and path.is_file():
            head = read_bytes(path, _HEAD_BYTES).lstrip(b"\xef\xbb\xbf").replace(b"\0", b"")
            if head.startswith((b"#name,", b"name,")) and b"heading" in head.split(b"\n")[0]:
                return path
    return None


def _find_xmp(folder: Path) -> list[Path]:
    for name in _FOLDERS:
        place = folder / name
        files = [path for path in entries(place) if path.suffix.lower() == ".xmp"] if place.is_dir() else []
        found = [path for path in files if path.is_file() and _is_realityscan(path)]
        if found:
            return found
    return []


def _is_realityscan(path: Path) -> bool:
    """Whether an XMP file is from this program; UTF-16 has zeros between the letters."""
    return b"capturingreality" in read_bytes(path, _HEAD_BYTES).replace(b"\0", b"")


def _read_table(folder: Path, path: Path) -> list[PosedImage]:
    try:
        rows = list(csv.DictReader(read_text(path).splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise SceneError(f"{path}: can't be read ({reason(error)}); {_EXPORT}") from error
    posed = []
    for number, row in enumerate(rows, start=2):
        name = printable(row.get("#name") or row.get("name") or "")
        if not name:
            raise SceneError(f"{path}: line {number} names no image; {_EXPORT}")
        values = {column: _number(path, name, row, column) for column in _COLUMNS}
        lens = [_number(path, name, row, column) if row.get(column) else 0.0 for column in (*_RADIAL, *_TANGENTIAL)]
        c2w = np.eye(4)
        c2w[:3, :3] = _rotation(-values["heading"], values["pitch"], values["roll"])
        c2w[:3, 3] = values["x"], values["y"], values["alt"]
        posed.append(_posed(folder, path, name, values["f"], (values["px"], values["py"]), lens, flip_camera_axes(c2w)))
    if not posed:
        raise SceneError(f"{path}: holds no camera; {_EXPORT}")
    return posed


def _read_xmp(folder: Path, path: Path) -> PosedImage | None:
    """Camera of an XMP file; None if it has no pose."""
    name = path.with_suffix("").relative_to(folder).as_posix()
    try:
        fields = _fields(ET.fromstring(read_bytes(path)))
        if "Rotation" not in fields or "Position" not in fields:
            return None
        rotation = np.array([float(word) for word in fields["Rotation"].split()]).reshape(3, 3)
        position = np.array([float(word) for word in fields["Position"].split()]).reshape(3)
        lens = [float(word) for word in fields.get("DistortionCoeficients", "0 0 0 0 0 0").split()]
        skew, aspect = float(fields.get("Skew", "0")), float(fields.get("AspectRatio", "1"))
        focal, point = (
            float(fields["FocalLength35mm"]),
            [float(fields.get(f"PrincipalPoint{axis}", "0")) for axis in "UV"],
        )
    except KeyError as error:
        raise SceneError(f"{path}: has no {printable(str(error.args[0]))}; {_EXPORT}, with calibrations") from error
    except (ET.ParseError, ValueError) as error:
        raise SceneError(f"{path}: can't be read ({reason(error)}); {_EXPORT}") from error
    model = fields.get("DistortionModel", "perspective").lower()
    if (any(lens) and model not in _DISTORTIONS) or len(lens) != len((*_RADIAL, *_TANGENTIAL)):
        raise SceneError(f"{path}: distortion model {printable(model)} is not supported; undistort the images first")
    if abs(skew) > 1e-3 or abs(aspect - 1) > 1e-3:
        raise SceneError(f"{path}: pixels that are skewed or not square are not supported; undistort the images first")
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = rotation.T, position
    return _posed(folder, path, name, focal, (point[0], point[1]), lens, c2w)


def _fields(root: ET.Element) -> dict[str, str]:
    """Values of XMP's fields, which are attributes or elements, by their names without namespace."""
    found = {}
    for element in root.iter():
        if element.tag.startswith(_NAMESPACE) and element.text:
            found[element.tag.removeprefix(_NAMESPACE)] = element.text
        for key, value in element.attrib.items():
            if key.startswith(_NAMESPACE):
                found[key.removeprefix(_NAMESPACE)] = value
    return found


def _posed(
    folder: Path,
    path: Path,
    name: str,
    focal_mm: float,
    point: tuple[float, float],
    lens: list[float],
    c2w: np.ndarray,
) -> PosedImage:
    image = find_image(folder, name)
    if image is None:
        raise SceneError(
            f"{path}: the image {name} is missing, whose size its intrinsics need; put the images into {folder / 'images'}"
        )
    k1, k2, k3, *others = lens
    if any(others):
        # k4 is not in OpenCV's model, and other programs disagree on the order of t1 and t2.
        raise SceneError(
            f"{path}: k4 and tangential distortion (of {name}) are not supported; undistort the images with RealityScan, or "
            "align them with the model Brown3"
        )
    size = size_of(image)
    scale = max(size)
    focal = focal_mm / _FILM_MM * scale
    K = pinhole(focal, focal, size[0] / 2 + point[0] * scale, size[1] / 2 + point[1] * scale)
    check_camera(path, name, K, c2w)
    return PosedImage(name, K, size, c2w, Lens((k1, k2, 0.0, 0.0, k3)), image)


def _rotation(yaw_deg: float, pitch_deg: float, roll_deg: float) -> np.ndarray:
    """Camera to world (3, 3), OpenGL camera axes, of a camera that looks down for zero angles: Rz(yaw) Rx(pitch) Ry(roll)."""
    return Rotation.from_euler("ZXY", [yaw_deg, pitch_deg, roll_deg], degrees=True).as_matrix()


def _number(path: Path, name: str, row: Mapping[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except (KeyError, TypeError, ValueError) as error:
        raise SceneError(f"{path}: {column} of {name} is missing or not a number; {_EXPORT}") from error
    if not abs(value) < LARGEST:
        raise SceneError(f"{path}: {column} of {name} is not a finite number; {_EXPORT}")
    return value


REALITYSCAN = Format(recognize, read)

# SPDX-License-Identifier: Apache-2.0
"""Cameras of Agisoft Metashape (File > Export > Export Cameras, XML), with normal maps named like the camera labels.

World and units are those of the project's markers or scale bars if the file has the transform of the component or, in
older files, of the chunk. A sensor may have two calibrations: the initial one, from the lens's nominal focal length, and
the adjusted one that belongs to the poses, which is taken. The translation of a world whose origin is very far away, as on a map, is dropped, because
meshes are stored in single precision. Metashape's p1 and p2 are OpenCV's p2 and p1; cx and cy count from the center of
the image.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.camera_files import LARGEST, is_rigid
from pmni_nerfstudio.data.files import printable, reason
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.importers.posed_images import PosedImage, attach_maps, check_camera, find_image, pinhole
from pmni_nerfstudio.importers.source import Format, ImportOptions, Lens, Source

_HEAD_BYTES = 4096
"""Bytes at the start of a file that are searched for the elements of such files."""
_MAX_TRANSLATION = 100.0
"""Largest translation of the world that is kept, in extents of the cameras."""


def recognize(folder: Path) -> bool:
    """Whether there is an XML file of Metashape's cameras."""
    return _find_xml(folder) is not None


def read(folder: Path, options: ImportOptions) -> Source:
    """Read the cameras of all aligned images of the first chunk."""
    path = _find_xml(folder)
    if path is None:
        raise SceneError(f"{folder}: has no cameras of Metashape; export them as XML")
    try:
        document = ET.parse(path).getroot()
        chunk = document.find("chunk")
        if chunk is None:
            raise ValueError("it has no chunk")
        sensors = {sensor.get("id"): sensor for sensor in chunk.iter("sensor")}
        of_component = {part.get("id"): _world_transform(path, part) for part in chunk.iter("component")}
        of_chunk = _world_transform(path, chunk)
        posed, transforms, uncalibrated = [], [], {}
        for camera in chunk.iter("camera"):
            transform = camera.find("transform")
            if transform is None or not transform.text:
                continue  # not aligned
            label = printable(camera.get("label") or "")
            sensor = sensors.get(camera.get("sensor_id"))
            K, size, lens = _sensor(path, label, sensor)
            if _kind(_calibration(sensor)) == "initial":
                uncalibrated.setdefault(camera.get("sensor_id"), label)
            c2w = np.array([float(word) for word in transform.text.split()]).reshape(4, 4)
            check_camera(path, label, K, c2w)
            transforms.append(of_component.get(camera.get("component_id"), of_chunk))
            posed.append(PosedImage(label, K, size, c2w, lens, find_image(folder, label)))
    except (OSError, ET.ParseError, ValueError, TypeError, AttributeError) as error:
        raise SceneError(f"{path}: can't be read as Metashape's cameras ({reason(error)}); export it again") from error
    if not posed:
        raise SceneError(f"{path}: holds no aligned cameras; align the photographs first")
    if any(not np.array_equal(transform, transforms[0]) for transform in transforms):
        raise SceneError(f"{path}: has cameras in several components; merge them or export only one")
    c2w, warnings = _to_world(path, np.stack([image.c2w for image in posed]), transforms[0])
    posed = [replace(image, c2w=pose) for image, pose in zip(posed, c2w)]
    warnings += _overlooked(path, len(document.findall("chunk")))
    warnings += tuple(
        f"{path}: the sensor of {label} has only an initial calibration, which can be far off; align the photographs "
        "with camera optimization and export the cameras again"
        for label in uncalibrated.values()
    )
    source = attach_maps(folder, f"Metashape's {path.name}", posed, options)
    return replace(source, warnings=(*source.warnings, *warnings))


def _overlooked(path: Path, num_chunks: int) -> tuple[str, ...]:
    """Warnings of chunks and files that are not read."""
    warnings = []
    if num_chunks > 1:
        warnings.append(f"{path}: holds {num_chunks} chunks, of which the first was read; export the right one alone")
    others = [other.name for other in _xml_files(path.parent) if other != path]
    if others:
        warnings.append(f"{path}: was read, and not {', '.join(others)}; move the right file to a folder of its own")
    return tuple(warnings)


def _world_transform(path: Path, part: ET.Element) -> np.ndarray:
    """Similarity (4, 4) from a component or chunk to the world; the identity if the file has none."""
    similarity = np.eye(4)
    transform = part.find("transform")
    if transform is None:
        return similarity

    def numbers(name: str, default: np.ndarray) -> np.ndarray:
        element = transform.find(name)
        if element is None:
            return default
        return np.array([float(word) for word in (element.text or "").split()]).reshape(default.shape)

    scale, rotation = float(numbers("scale", np.ones(1))[0]), numbers("rotation", np.eye(3))
    similarity[:3, :3], similarity[:3, 3] = rotation, numbers("translation", np.zeros(3))
    if not (1 / LARGEST < scale < LARGEST and is_rigid(similarity)):
        raise SceneError(
            f"{path}: the transform to the world is not a rotation, translation and scale; export it again"
        )
    similarity[:3, :3] *= scale
    return similarity


def _to_world(path: Path, c2w: np.ndarray, transform: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Poses (N, 4, 4) in the world, and a warning if its translation is dropped."""
    moved = transform_poses(transform, c2w)
    extent = float(np.linalg.norm(np.ptp(moved[:, :3, 3], axis=0)))
    distance = float(np.linalg.norm(transform[:3, 3]))
    if distance <= _MAX_TRANSLATION * extent:
        return moved, ()
    moved[:, :3, 3] -= transform[:3, 3]
    translation = ", ".join(f"{value:.3f}" for value in transform[:3, 3])
    return moved, (
        f"{path}: the world's origin is {distance / extent:.0f} times the cameras' extent away, so its translation "
        f"({translation}) was subtracted",
    )


def _find_xml(folder: Path) -> Path | None:
    return next(iter(_xml_files(folder)), None)


def _xml_files(folder: Path) -> list[Path]:
    """XML files of Metashape's documents, in any encoding."""
    found = []
    for path in sorted(folder.glob("*.xml")):
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(_HEAD_BYTES).replace(b"\0", b"")  # UTF-16
            if b"<document" in head and b"<chunk" in head:
                found.append(path)
    return found


def _calibration(sensor: ET.Element | None) -> ET.Element | None:
    """Calibration of a sensor with a focal length: the adjusted one, or else the last one in the file."""
    found = [] if sensor is None else [part for part in sensor.findall("calibration") if part.find("f") is not None]
    adjusted = [part for part in found if _kind(part) == "adjusted"]
    unnamed = [part for part in found if _kind(part) is None]
    return next(reversed(adjusted or unnamed or found), None)


def _kind(calibration: ET.Element | None) -> str | None:
    """Class of a calibration: "initial", "adjusted" or, in files with one calibration, None."""
    return None if calibration is None else calibration.get("class")


def _sensor(path: Path, label: str, sensor: ET.Element | None) -> tuple[np.ndarray, tuple[int, int], Lens]:
    """K (3, 3), image size and distortion of a camera's sensor."""
    calibration = _calibration(sensor)
    if sensor is None or calibration is None:
        raise SceneError(f"{path}: the camera {label} has no calibrated sensor; export the cameras again")
    if sensor.get("type", "frame") not in ("frame", "fisheye"):
        raise SceneError(
            f"{path}: sensors of type {printable(str(sensor.get('type')))} are not supported; undistort the images first"
        )
    resolution = sensor.find("resolution")
    if resolution is None:
        raise SceneError(f"{path}: the sensor of {label} has no resolution; export the cameras again")
    width, height = int(resolution.get("width", "0")), int(resolution.get("height", "0"))
    if min(width, height) <= 0:
        raise SceneError(f"{path}: the sensor of {label} has no pixels; export the cameras again")

    def value(name: str) -> float:
        element = calibration.find(name)
        return float(element.text or 0) if element is not None else 0.0

    is_fisheye = sensor.get("type") == "fisheye"
    if (value("k4") or value("p1") or value("p2")) if is_fisheye else value("k4"):
        raise SceneError(f"{path}: the distortion of {label} has terms that OpenCV lacks; undistort the images first")
    K = pinhole(value("f") + value("b1"), value("f"), width / 2 + value("cx"), height / 2 + value("cy"))
    K[0, 1] = value("b2")
    if abs(K[0, 1]) > 1e-3 * K[0, 0]:
        raise SceneError(f"{path}: the camera of {label} has skew (b2); undistort the images first")
    K[0, 1] = 0
    radial = (value("k1"), value("k2"), value("k3"))
    if is_fisheye:
        return K, (width, height), Lens((*radial, 0.0), True)
    return K, (width, height), Lens((*radial[:2], value("p2"), value("p1"), radial[2]))


METASHAPE = Format(recognize, read)

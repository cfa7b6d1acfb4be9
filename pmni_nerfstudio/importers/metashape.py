# SPDX-License-Identifier: Apache-2.0
"""Cameras of Agisoft Metashape (File, Export, Export cameras: XML), beside normal maps named as its labels are.

The world is that of the project's markers, scale bars or maps, in its units, where the file has the transform to it (of a
component, or in older files of the chunk); only its shift is left out where it is so far away, as on a map, that a mesh's
single precision would suffer. Metashape's p1 and p2 are OpenCV's the other way round; cx, cy count from the middle of the
image.
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
from pmni_nerfstudio.importers.posed_images import PosedImage, check_camera, find_image, join, pinhole
from pmni_nerfstudio.importers.source import Format, Lens, Options, Prepared

_HEAD = 4096
_FARTHEST = 100.0
"""Shift of the world from the cameras, in their spread."""


def recognise(folder: Path) -> bool:
    """Whether there is an XML file of cameras."""
    return _find(folder) is not None


def read(folder: Path, options: Options) -> Prepared:
    """Cameras of all aligned images of the first chunk."""
    path = _find(folder)
    if path is None:
        raise SceneError(f"{folder}: has no cameras of Metashape: export them as XML")
    try:
        chunk = ET.parse(path).getroot().find("chunk")
        if chunk is None:
            raise ValueError("it has no chunk")
        sensors = {sensor.get("id"): sensor for sensor in chunk.iter("sensor")}
        worlds = {part.get("id"): _world(path, part) for part in chunk.iter("component")}
        whole = _world(path, chunk)
        posed, transforms = [], []
        for camera in chunk.iter("camera"):
            transform = camera.find("transform")
            if transform is None or not transform.text:
                continue  # not aligned
            label = printable(camera.get("label") or "")
            K, size, lens = _sensor(path, label, sensors.get(camera.get("sensor_id")))
            c2w = np.array([float(word) for word in transform.text.split()]).reshape(4, 4)
            check_camera(path, label, K, c2w)
            transforms.append(worlds.get(camera.get("component_id"), whole))
            posed.append(PosedImage(label, K, size, c2w, lens, find_image(folder, label)))
    except (OSError, ET.ParseError, ValueError, TypeError, AttributeError) as error:
        raise SceneError(f"{path}: can't be read as Metashape's cameras ({reason(error)}): export it again") from error
    if not posed:
        raise SceneError(f"{path}: holds no aligned camera: align the photographs first")
    if any(not np.array_equal(transform, transforms[0]) for transform in transforms):
        raise SceneError(f"{path}: has cameras in several components: merge them, or export one alone")
    moved, warnings = _in_world(path, np.stack([image.c2w for image in posed]), transforms[0])
    posed = [replace(image, c2w=c2w) for image, c2w in zip(posed, moved)]
    found = join(folder, f"Metashape's {path.name}", posed, options)
    return replace(found, warnings=(*found.warnings, *warnings))


def _world(path: Path, part: ET.Element) -> np.ndarray:
    """The similarity (4, 4) that a component or a chunk has to the world; the identity without one."""
    found = np.eye(4)
    transform = part.find("transform")
    if transform is None:
        return found

    def numbers(name: str, default: np.ndarray) -> np.ndarray:
        element = transform.find(name)
        if element is None:
            return default
        return np.array([float(word) for word in (element.text or "").split()]).reshape(default.shape)

    scale, rotation = float(numbers("scale", np.ones(1))[0]), numbers("rotation", np.eye(3))
    found[:3, :3], found[:3, 3] = rotation, numbers("translation", np.zeros(3))
    if not (1 / LARGEST < scale < LARGEST and is_rigid(found)):
        raise SceneError(f"{path}: its transform to the world is no rotation, shift and scale: export it again")
    found[:3, :3] *= scale
    return found


def _in_world(path: Path, c2w: np.ndarray, transform: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Poses (N, 4, 4) in the world, and what is to be said of it."""
    moved = transform_poses(transform, c2w)
    centres = moved[:, :3, 3]
    spread = float(np.linalg.norm(np.ptp(centres, axis=0)))
    distance = float(np.linalg.norm(transform[:3, 3]))
    if distance <= _FARTHEST * spread:
        return moved, ()
    moved[:, :3, 3] -= transform[:3, 3]
    shift = ", ".join(f"{value:.3f}" for value in transform[:3, 3])
    return moved, (
        f"{path}: the world's origin is {distance / spread:.0f} times the cameras' spread away: {shift} was taken off",
    )


def _find(folder: Path) -> Path | None:
    for path in sorted(folder.glob("*.xml")):
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(_HEAD)
            if b"<document" in head and b"<chunk" in head:
                return path
    return None


def _sensor(path: Path, label: str, sensor: ET.Element | None) -> tuple[np.ndarray, tuple[int, int], Lens]:
    if sensor is None or sensor.find("calibration/f") is None:
        raise SceneError(f"{path}: the camera {label} has no calibrated sensor: export the cameras again")
    if sensor.get("type", "frame") not in ("frame", "fisheye"):
        raise SceneError(
            f"{path}: a {printable(str(sensor.get('type')))} sensor isn't read: undistort its images to frame ones first"
        )
    found = sensor.find("resolution")
    calibration = sensor.find("calibration")
    if found is None or calibration is None:
        raise SceneError(f"{path}: the sensor of {label} has no resolution: export the cameras again")
    width, height = int(found.get("width", "0")), int(found.get("height", "0"))
    if min(width, height) <= 0:
        raise SceneError(f"{path}: the sensor of {label} has no pixels: export the cameras again")

    def value(name: str) -> float:
        element = calibration.find(name)
        return float(element.text or 0) if element is not None else 0.0

    is_fisheye = sensor.get("type") == "fisheye"
    if (value("k4") or value("p1") or value("p2")) if is_fisheye else value("k4"):
        raise SceneError(f"{path}: the distortion of {label} has terms that OpenCV hasn't: undistort the images first")
    K = pinhole(value("f") + value("b1"), value("f"), width / 2 + value("cx"), height / 2 + value("cy"))
    K[0, 1] = value("b2")
    if abs(K[0, 1]) > 1e-3 * K[0, 0]:
        raise SceneError(f"{path}: the axes of {label} are skew (b2): undistort the images first")
    K[0, 1] = 0
    radial = (value("k1"), value("k2"), value("k3"))
    if is_fisheye:
        return K, (width, height), Lens((*radial, 0.0), True)
    return K, (width, height), Lens((*radial[:2], value("p2"), value("p1"), radial[2]))


METASHAPE = Format(recognise, read)

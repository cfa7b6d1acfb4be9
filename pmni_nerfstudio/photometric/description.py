# SPDX-License-Identifier: Apache-2.0
"""Captures described by a JSON file, photometric.json; docs/photometric.md documents it with an example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pmni_nerfstudio.data.camera_files import is_rigid
from pmni_nerfstudio.data.files import read_json_object
from pmni_nerfstudio.data.listing import natural_key
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.photometric.capture import (
    LIGHT_AXES,
    MAX_NUMBER,
    Capture,
    CaptureView,
    Layout,
    check_count,
    check_intensities,
    distant_lights,
)
from pmni_nerfstudio.photometric.lights import Lights

FILE = "photometric.json"
_REMEDY = "see the page on photometric stereo in the documentation"
_KEYS = {"light_axes", "units", "lights", "distance", "intrinsics", "cameras", "saturation", "mesh", "views"}
_VIEW_KEYS = {"name", "images", "mask", "lights", "distance", "intrinsics", "c2w"}
_LIGHT_KEYS = {"direction", "position", "intensity", "axis", "exponent"}


def recognize(path: Path) -> bool:
    """Whether a path is a JSON file, or a folder with photometric.json."""
    return (path.is_file() and path.suffix.lower() == ".json") or (path / FILE).is_file()


def read(path: Path, axes: str | None) -> Capture:
    """Read a description and the names of its files, which are relative to its folder.

    Raises:
        SceneError: A value is missing or invalid.
    """
    file = path / FILE if path.is_dir() else path
    contents = read_json_object(file, _REMEDY)
    _check_keys(file, "the file", contents, _KEYS)
    axes = axes or contents.get("light_axes")
    if not isinstance(axes, str) or axes not in LIGHT_AXES:
        raise SceneError(f"{file}: light_axes is {axes!r}; give one of {', '.join(LIGHT_AXES)}")
    listed = contents.get("views")
    if not isinstance(listed, list) or not all(isinstance(view, dict) for view in listed) or not listed:
        raise SceneError(f"{file}: views is not a list of objects; {_REMEDY}")
    views = sorted(
        (_read_view(file, i, view, contents, axes) for i, view in enumerate(listed)),
        key=lambda view: natural_key(view.name),
    )
    names = [view.name for view in views]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise SceneError(f"{file}: has two views named {double}; give each a name of its own")
    posed = [view.c2w is not None for view in views]
    if any(posed) and not all(posed):
        raise SceneError(f"{file}: view {views[posed.index(False)].name} has no c2w; give all views a pose, or none")
    saturation = None
    if "saturation" in contents:
        saturation = _number(file, "saturation", contents["saturation"])
    return Capture(
        f"{file.name} of {file.parent.resolve().name}",
        tuple(views),
        axes,
        _file(file, "cameras", contents["cameras"]) if "cameras" in contents else None,
        _file(file, "mesh", contents["mesh"]) if "mesh" in contents else None,
        saturation,
    )


def _read_view(file: Path, index: int, view: dict[str, Any], shared: dict[str, Any], axes: str) -> CaptureView:
    name = view.get("name", f"{index:02d}")
    if not isinstance(name, str) or not name or name.startswith(".") or set(name) & set("/\\\0"):
        raise SceneError(f"{file}: the name {name!r} of view {index} can't be a file name; give letters and digits")
    where = f"view {name}: "
    _check_keys(file, where.rstrip(": "), view, _VIEW_KEYS)
    images = view.get("images")
    if not isinstance(images, list):
        raise SceneError(f"{file}: {where}images is not a list of file names; {_REMEDY}")
    files = tuple(_file(file, f"{where}images", image) for image in images)
    mask = _file(file, f"{where}mask", view.get("mask"))
    given = view.get("lights", shared.get("lights"))
    lights = _lights(file, where, given, len(files), axes, shared.get("units"))
    distance = view.get("distance", shared.get("distance"))
    camera = view.get("intrinsics", shared.get("intrinsics"))
    return CaptureView(
        name,
        files,
        lights,
        mask,
        _intrinsics(file, where, camera) if camera is not None else None,
        _pose(file, where, view["c2w"]) if "c2w" in view else None,
        _number(file, f"{where}distance", distance) if distance is not None else None,
    )


def _lights(file: Path, where: str, given: Any, count: int, axes: str, units: Any) -> Lights:
    if not isinstance(given, list) or not all(isinstance(light, dict) for light in given):
        raise SceneError(f"{file}: {where}lights is not a list of objects; {_REMEDY}")
    for light in given:
        _check_keys(file, f"{where}a light", light, _LIGHT_KEYS)
    kinds = {("direction" in light, "position" in light) for light in given}
    if kinds not in ({(True, False)}, {(False, True)}):
        raise SceneError(f"{file}: {where}give each light a direction, or each a position")
    values = [light.get("intensity", 1.0) for light in given]
    rows = [[value] * 3 if isinstance(value, (int, float)) else value for value in values]
    intensities = check_intensities(file, _numbers(file, f"{where}intensity", rows, 3))
    if kinds == {(True, False)}:
        directions = _numbers(file, f"{where}direction", [light["direction"] for light in given], 3)
        return distant_lights(file, directions, intensities, axes, count)
    check_count(file, len(given), count)
    if not isinstance(units, str):
        raise SceneError(f'{file}: units is missing; name the unit of positions, distance and poses, such as "mm"')
    turn = LIGHT_AXES[axes].T
    positions = _numbers(file, f"{where}position", [light["position"] for light in given], 3) @ turn
    shaped = ["axis" in light for light in given]
    if not any(shaped):
        return Lights(positions, intensities, is_near=True)
    if not all(shaped):
        raise SceneError(f"{file}: {where}give all lights an axis and an exponent, or none")
    principal = _numbers(file, f"{where}axis", [light["axis"] for light in given], 3) @ turn
    length = np.linalg.norm(principal, axis=1, keepdims=True)
    exponents = _numbers(file, f"{where}exponent", [[light.get("exponent", 1.0)] for light in given], 1)[:, 0]
    if not (length > 0).all() or (exponents < 0).any():
        raise SceneError(f"{file}: {where}an axis is zero, or an exponent negative; {_REMEDY}")
    return Lights(positions, intensities, True, principal / length, exponents)


def _intrinsics(file: Path, where: str, camera: Any) -> np.ndarray:
    if not isinstance(camera, dict) or not {"fl_x", "fl_y", "cx", "cy"} <= set(camera):
        raise SceneError(f"{file}: {where}intrinsics lacks fl_x, fl_y, cx or cy; give them in pixels")
    fx, fy, cx, cy = _numbers(file, f"{where}intrinsics", [[camera[k] for k in ("fl_x", "fl_y", "cx", "cy")]], 4)[0]
    if min(fx, fy) <= 0:
        raise SceneError(f"{file}: {where}fl_x or fl_y is not positive; give focal lengths in pixels")
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _pose(file: Path, where: str, rows: Any) -> np.ndarray:
    c2w = _numbers(file, f"{where}c2w", rows, 4)
    if c2w.shape != (4, 4) or not is_rigid(c2w):
        raise SceneError(f"{file}: {where}c2w is not a rigid 4x4 matrix; give camera to world, OpenCV axes")
    return c2w


def _file(file: Path, what: str, name: Any) -> Path:
    if not isinstance(name, str) or not name:
        raise SceneError(f"{file}: {what} names no file; give a path relative to {file.parent}")
    path = file.parent / name
    if not path.is_file():
        raise SceneError(f"{path}: No such file, but {file} names it; add it or correct {what}")
    return path


def _numbers(file: Path, what: str, rows: Any, columns: int) -> np.ndarray:
    try:
        array = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 2 or array.shape[1] != columns or not (np.abs(array) <= MAX_NUMBER).all():
        raise SceneError(f"{file}: {what} is not {columns} finite numbers{' each' if columns > 1 else ''}; {_REMEDY}")
    return array


def _number(file: Path, what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_NUMBER:
        raise SceneError(f"{file}: {what} is not a positive number; correct it")
    return float(value)


def _check_keys(file: Path, what: str, found: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(found) - known)
    if unknown:
        raise SceneError(f"{file}: {what} has the unknown key {unknown[0]}; the keys are {', '.join(sorted(known))}")


DESCRIPTION = Layout(recognize, read)

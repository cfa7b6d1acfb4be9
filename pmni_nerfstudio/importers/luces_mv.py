# SPDX-License-Identifier: Apache-2.0
"""One object of LUCES-MV as released: view_NNN/RT.npz and mask.png, with normal maps named like the views.

RT.npz holds R and T, world to camera, with OpenCV's axes. Intrinsics are in a text file beside the views or one folder
above, in LUCES's layout: its second line has the number of lights, height, width, focal length, cx, cy and mean distance,
in pixels and millimeters. The maker's own reader could not be read; this is the layout that other readers expect.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.camera_files import LARGEST
from pmni_nerfstudio.data.files import entries, read_text
from pmni_nerfstudio.data.listing import natural_key
from pmni_nerfstudio.data.npz import read_npz
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.importers.posed_images import PosedImage, attach_maps, check_camera
from pmni_nerfstudio.importers.source import Format, ImportOptions, Source

_POSE = "RT.npz"
_MAX_BYTES = 1 << 16
_HEADER = 7
"""Numbers in the line of the intrinsics."""


def recognize(folder: Path) -> bool:
    """Whether there are views with an RT.npz."""
    return len(_views(folder)) > 1


def read(folder: Path, options: ImportOptions) -> Source:
    """Read the cameras of all views."""
    views = _views(folder)
    if not views:
        raise SceneError(f"{folder}: has no view_*/{_POSE}; give the folder of one object of LUCES-MV")
    K, size, calibration = _intrinsics(folder)
    posed = []
    for view in views:
        path = view / _POSE
        arrays = read_npz(path, lambda name: name in ("R", "T"), _MAX_BYTES)
        try:
            w2c = np.eye(4)
            w2c[:3, :3], w2c[:3, 3] = arrays["R"].reshape(3, 3), arrays["T"].reshape(3)
        except (KeyError, ValueError, TypeError) as error:
            raise SceneError(f"{path}: has no R (3x3) and T (3); take the file of the data set") from error
        check_camera(path, view.name, K, w2c)
        posed.append(PosedImage(view.name, K, size, np.linalg.inv(w2c)))
    source = attach_maps(folder, f"LUCES-MV, intrinsics from {calibration.name}", posed, options)
    warning = (
        f"{folder}: LUCES-MV's layout is known from other readers only; check the consistency of the silhouettes below"
    )
    return replace(source, warnings=(warning, *source.warnings))


def _views(folder: Path) -> list[Path]:
    found = [path for path in entries(folder) if path.name.startswith("view_") and (path / _POSE).is_file()]
    return sorted(found, key=lambda path: natural_key(path.name))


def _intrinsics(folder: Path) -> tuple[np.ndarray, tuple[int, int], Path]:
    """K (3, 3), width and height, and the file that they are from; all files that are found have to agree."""
    found: list[tuple[Path, list[float]]] = []
    for place in (folder, folder.absolute().parent):
        for path in entries(place):
            if path.suffix.lower() == ".txt" and path.is_file() and (values := _header(path)) is not None:
                found.append((path, values))
        if found:
            break
    if not found:
        raise SceneError(
            f"{folder}: has no text file with LUCES's intrinsics (second line: lights height width focal cx cy distance); "
            "put that of the data set beside the views"
        )
    path, values = found[0]
    for other, values_of_other in found[1:]:
        if values_of_other[1:6] != values[1:6]:
            raise SceneError(f"{other}: has other intrinsics than {path.name}; keep the file of this object's camera")
    _, height, width, focal, cx, cy, _ = values
    return np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1]]), (int(width), int(height)), path


def _header(path: Path) -> list[float] | None:
    """Numbers of the second line of a file; None if it is not in LUCES's layout."""
    try:
        lines = [line for line in read_text(path).splitlines() if line.strip()]
        values = [float(word) for word in lines[1].split()]
    except (OSError, ValueError, IndexError):
        return None  # another file
    if len(values) != _HEADER or not all(0 < value < LARGEST for value in values):
        return None
    if not all(value.is_integer() for value in values[:3]) or len(lines) != 2 + int(values[0]):
        raise SceneError(
            f"{path}: announces {values[0]:g} lights of {values[2]:g}x{values[1]:g} pixels and holds {len(lines) - 2} lights; take "
            "the file of the data set"
        )
    return values


LUCES_MV = Format(recognize, read)

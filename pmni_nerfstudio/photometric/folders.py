# SPDX-License-Identifier: Apache-2.0
"""Captures as folders of images with text files of lights: DiLiGenT and DiLiGenT-MV, .lp files, and LUCES.

SRC/view_01/001.png ...             one folder for each view; without such folders, SRC is refused: one view is no scene
SRC/view_01/filenames.txt           the images in the order of the lights; else natural order
SRC/view_01/light_directions.txt    x y z towards the light: x right, y up, z towards the viewer (Shi et al., "A Benchmark
                                    Dataset and Evaluation for Non-Lambertian and Uncalibrated Photometric Stereo", 2016)
SRC/view_01/light_intensities.txt   red green blue; images are divided by them
SRC/view_01/mask.png
SRC/Calib_Results.mat               cameras of DiLiGenT-MV; or cameras_sphere.npz, intrinsics.json, K.txt

NAME.lp, in a view or in SRC, replaces light_directions.txt: lines of an image's file name and x y z, as RTI programs and
Meshroom write them, in RTI after a line with their number. AliceVision negates y and z to reach OpenCV axes
(photometricDataIO.cpp), so the file's own are those of DiLiGenT. Files of lights that a view lacks are taken from SRC.

led_params.txt is that of LUCES (Mecca et al., "LUCES: A Dataset for Near-Field Point Light Source Photometric Stereo",
2021): a header; the number of images, the image's size, focal length, principal point in pixels, mean distance in mm; then
for each light position, principal direction, intensity (1 or 3) and exponent. Its readers decode normals to x right, y down,
z forward, and so are its positions. The layout of LUCES-MV has not been seen; several such folders are read as views.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.camera_files import read_intrinsics
from pmni_nerfstudio.data.files import check_file, entries, reason
from pmni_nerfstudio.data.images import MASK_SUFFIXES
from pmni_nerfstudio.data.listing import natural_key
from pmni_nerfstudio.data.scene import CAMERAS, INTRINSICS
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.importers import diligent_mv
from pmni_nerfstudio.importers.plain_folder import read_matrix
from pmni_nerfstudio.photometric.capture import (
    LIGHT_AXES,
    MAX_NUMBER,
    Capture,
    CaptureView,
    Layout,
    check_count,
    check_intensities,
    distant_lights,
    number_table,
    read_table,
    recognize_axes,
)
from pmni_nerfstudio.photometric.lights import Lights
from pmni_nerfstudio.photometric.photographs import SUFFIXES

_DIRECTIONS, _INTENSITIES, _NAMES = "light_directions.txt", "light_intensities.txt", "filenames.txt"
_LEDS = "led_params.txt"
_NOT_IMAGES = ("mask", "normal", "depth", "albedo", "ambient")
"""Beginnings of the names of pictures beside the images that are none."""


def recognize(folder: Path) -> bool:
    """Whether a folder has views with lights."""
    return bool(_views(folder))


def read(folder: Path, axes: str | None) -> Capture:
    """Read a folder of views.

    Raises:
        SceneError: A file is missing or broken.
    """
    names = recognize_axes(axes)
    mesh = folder / diligent_mv.MESH
    has_calibration = (folder / diligent_mv.CALIBRATION).is_file()
    cameras = diligent_mv.read_cameras(folder) if has_calibration else {}
    K = None if has_calibration else _shared_intrinsics(folder)
    views = []
    for view in _views(folder):
        mask = _mask(view)
        if (view / _LEDS).is_file():
            views.append(_read_luces(view, mask, axes))
            continue
        images = _images(view)
        lights = _lights(folder, view, images, names)
        own_K, c2w = cameras.get(view.name, (K, None))
        views.append(CaptureView(view.name, images, lights, mask, own_K, c2w))
    shown = axes or ("opencv" if views and views[0].lights.is_near else "camera")
    kind = "DiLiGenT-MV" if has_calibration else "images and lights"
    camera_file = folder / CAMERAS if (folder / CAMERAS).is_file() else None
    return Capture(f"{kind}, {folder.name}", tuple(views), shown, camera_file, mesh if mesh.is_file() else None)


def _views(folder: Path) -> list[Path]:
    """Folders with images and lights in natural order."""
    if not folder.is_dir():
        return []
    is_shared = (folder / _DIRECTIONS).is_file() or any(folder.glob("*.lp"))
    lit, dark = [], []
    for path in entries(folder):
        if not path.is_dir() or path.name.startswith("."):
            continue
        names = {entry.name for entry in entries(path)}
        has_images = any(_is_image(path / name) for name in names)
        if names & {_DIRECTIONS, _LEDS} or any(name.endswith(".lp") for name in names) or (is_shared and has_images):
            lit.append(path)
        elif has_images and "mask.png" in names:
            dark.append(path)
    # Beside views with lights, one without is an error that `_lights` names.
    return sorted([*lit, *dark] if lit else [], key=lambda path: natural_key(path.name))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.lower().startswith((*_NOT_IMAGES, "."))


def _images(view: Path) -> tuple[Path, ...]:
    """Images of a view in the order of its lights."""
    listing = view / _NAMES
    if listing.is_file():
        check_file(listing)
        try:
            names = [line.strip() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise SceneError(
                f"{listing}: can't be read ({reason(error)}); give the name of an image in each line"
            ) from error
        for name in names:
            if not (view / name).is_file():
                raise SceneError(f"{listing}: names {name}, which is not in {view}; add the image or correct the name")
        return tuple(view / name for name in names)
    return tuple(sorted((path for path in entries(view) if _is_image(path)), key=lambda path: natural_key(path.name)))


def _lights(folder: Path, view: Path, images: tuple[Path, ...], axes: str) -> Lights:
    file = next((root / _INTENSITIES for root in (view, folder) if (root / _INTENSITIES).is_file()), None)
    intensities = None
    if file is not None:
        intensities = check_intensities(file, read_table(file, (1, 3)))
        check_count(file, len(intensities), len(images))
    for root in (view, folder):
        if (root / _DIRECTIONS).is_file():
            table = read_table(root / _DIRECTIONS, (3,))
            return distant_lights(root / _DIRECTIONS, table, intensities, axes, len(images))
        for path in sorted(root.glob("*.lp")):
            return distant_lights(path, _read_lp(path, images), intensities, axes, len(images))
    raise SceneError(f"{view}: has no {_DIRECTIONS} and no .lp file; add the directions of the lights")


def _read_lp(path: Path, images: tuple[Path, ...]) -> np.ndarray:
    """Directions (n, 3) of a .lp file for each image by its file name, in any case."""
    check_file(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.rsplit(maxsplit=3) for line in lines if line.strip()]
        if rows and len(rows[0]) == 1:
            rows = rows[1:]
        # Names may hold blanks and folders, with separators of either kind.
        found = {
            row[0].replace("\\", "/").rsplit("/", 1)[-1].lower(): [float(word) for word in row[1:]] for row in rows
        }
    except (OSError, ValueError, IndexError) as error:
        raise SceneError(f"{path}: can't be read ({reason(error)}); give a file name and x y z in each line") from error
    for image in images:
        if len(found.get(image.name.lower(), ())) != 3:
            raise SceneError(f"{path}: has no light for {image}; add a line with its file name and x y z, or remove it")
    return np.array([found[image.name.lower()] for image in images])


def _read_luces(view: Path, mask: Path, axes: str | None) -> CaptureView:
    path = view / _LEDS
    check_file(path)
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        _, _, _, focal, cx, cy, distance = (float(word) for word in lines[1])
        # Lines end in a zero that readers ignore.
        rows = number_table(lines[2:])
        if not (np.abs(rows) <= MAX_NUMBER).all() or not all(0 < v <= MAX_NUMBER for v in (focal, cx, cy, distance)):
            raise ValueError("a number is too large, not finite, or not positive")
        spread = 1 if rows.shape[1] in (8, 9) else 3
        intensities, exponents = rows[:, 6 : 6 + spread], rows[:, 6 + spread]
        if (exponents < 0).any():
            raise ValueError("an exponent is negative")
    except (OSError, ValueError, IndexError) as error:
        raise SceneError(f"{path}: can't be read ({reason(error)}); take the file of the original data set") from error
    images = _images(view)
    check_count(path, len(rows), len(images))
    turn = LIGHT_AXES[axes or "opencv"].T
    length = np.linalg.norm(rows[:, 3:6], axis=1, keepdims=True)
    lights = Lights(
        rows[:, :3] @ turn,
        check_intensities(path, intensities),
        is_near=True,
        axes=np.divide(rows[:, 3:6], length, out=np.zeros_like(rows[:, 3:6]), where=length > 0) @ turn,
        exponents=exponents,
    )
    K = np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1]])
    return CaptureView(view.name, images, lights, mask, K, distance=distance)


def _mask(view: Path) -> Path:
    found = next((path for suffix in MASK_SUFFIXES if (path := view / f"mask{suffix}").is_file()), None)
    if found is None:
        raise SceneError(f"{view / 'mask.png'}: is missing; add the silhouette, white on the object")
    return found


def _shared_intrinsics(folder: Path) -> np.ndarray | None:
    if (folder / INTRINSICS).is_file():
        return read_intrinsics(folder / INTRINSICS)[0]
    return read_matrix(folder / "K.txt") if (folder / "K.txt").is_file() else None


FOLDERS = Layout(recognize, read)

# SPDX-License-Identifier: Apache-2.0
"""Folders of normal maps and masks without poses, whose camera is known by its intrinsics or just its focal length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from pmni_nerfstudio.data.camera_files import read_intrinsics
from pmni_nerfstudio.data.files import check_file, entries, read_text, reason
from pmni_nerfstudio.data.scene import INTRINSICS
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.importers.file_matching import match_files, view_names
from pmni_nerfstudio.importers.map_folders import find_images, find_masks, find_normals, require_normals
from pmni_nerfstudio.importers.source import Format, Frame, ImportOptions, Source
from pmni_nerfstudio.importers.view_maps import masks_of_views, size_of

_CAMERA_SUFFIXES = (
    *(".json", ".xml", ".sfm", ".abc", ".out", ".nvm", ".csv", ".xmp", ".npz", ".npy", ".mat", ".txt", ".yaml", ".yml"),
    *(".bin", ".log", ".pkl", ".h5"),
)
_FILM_WIDTH_MM = 36.0
_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0}
"""Length in mm of EXIF's FocalPlaneResolutionUnit: inch, centimeter, millimeter."""


def recognize(folder: Path) -> bool:
    """Whether there are any normal maps."""
    return bool(find_normals(folder).files)


def read(folder: Path, options: ImportOptions) -> Source:
    """Find the maps by name; take the camera from the options, intrinsics.json, K.txt or EXIF data of photographs.

    Raises:
        PmniError: There are no normal maps, or the camera is unknown.
    """
    found = require_normals(folder, options.normals)
    masks, images = find_masks(folder), find_images(folder)
    keys, normals = list(found.files), list(found.files.values())
    photographs = match_files(keys, images.files)
    mask_files = masks_of_views(folder, [(key,) for key in keys], masks.files, normals, photographs)
    frames = []
    camera_source = ""
    for name, file, mask, image in zip(view_names(keys), normals, mask_files, photographs, strict=True):
        K, size, camera_source = _camera(folder, file, image, options)
        frames.append(Frame(name, file, K, mask, size, image=image))
    description = f"normal maps without poses, camera from {camera_source}"
    warnings = (*found.warnings, *masks.warnings, *_overlooked(folder))
    return Source(description, tuple(frames), found.axes, warnings=warnings)


def _overlooked(folder: Path) -> list[str]:
    """Warning of files that may hold cameras, in formats that are not read."""
    others = [
        path.name
        for path in entries(folder)
        if path.suffix.lower() in _CAMERA_SUFFIXES and path.is_file() and path.name not in (INTRINSICS, "K.txt")
    ]
    if not others:
        return []
    listed = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    return [
        f"{folder}: {listed} may hold cameras but are in no format that is read, so that there are no poses; convert them to "
        "transforms.json if there should be"
    ]


def _camera(
    folder: Path, normals: Path, image: Path | None, options: ImportOptions
) -> tuple[np.ndarray, tuple[int, int] | None, str]:
    """K (3, 3), the image size that it belongs to (None: that of the normal map), and its origin in words."""
    if options.focal is not None or options.fov is not None:
        width, height = size_of(normals)
        if options.focal is not None:
            return _pinhole(options.focal, width, height), None, "--focal"
        return _pinhole(width / 2 / np.tan(np.deg2rad(options.fov or 0) / 2), width, height), None, "--fov"
    if (folder / INTRINSICS).is_file():
        K, width, height = read_intrinsics(folder / INTRINSICS)
        return K, (width, height), INTRINSICS
    for path in (normals.with_name("K.txt"), folder / "K.txt"):
        if path.is_file():
            return read_matrix(path), None, "K.txt"
    for path in (image, normals):
        found = _exif_camera(path) if path is not None else None
        if found is not None:
            return *found, "EXIF"
    raise PmniError(
        f"{folder}: has no camera intrinsics; give --focal (in pixels) or --fov (horizontal, in degrees), or add "
        f"{INTRINSICS} or K.txt (a 3x3 matrix)"
    )


def _pinhole(focal: float, width: int, height: int) -> np.ndarray:
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def read_matrix(path: Path) -> np.ndarray:
    """Intrinsics (3, 3) from a text file.

    Raises:
        SceneError: The file is missing or holds something else.
    """
    check_file(path)
    try:
        text = read_text(path)
        K = np.loadtxt(text.splitlines(), max_rows=4, delimiter="," if "," in text[:1000] else None)
    except (OSError, ValueError) as error:
        raise SceneError(f"{path}: can't be read ({reason(error)}); write the 3x3 matrix K in pixels") from error
    if K.shape != (3, 3) or not np.isfinite(K).all() or K[2, 2] == 0:
        raise SceneError(
            f"{path}: holds an array of shape {K.shape}, not a matrix of finite numbers; write the 3x3 matrix K in pixels"
        )
    return K / K[2, 2]


def _exif_camera(path: Path) -> tuple[np.ndarray, tuple[int, int]] | None:
    """K and size of a photograph from its focal length and pixel pitch, or from the 35 mm equivalent focal length."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            tags = {**image.getexif(), **image.getexif().get_ifd(ExifTags.IFD.Exif)}
        base = ExifTags.Base
        focal_mm, density = float(tags.get(base.FocalLength, 0)), float(tags.get(base.FocalPlaneXResolution, 0))
        unit = _UNIT_MM.get(int(tags.get(base.FocalPlaneResolutionUnit, 2)))
        taken_width, film_mm = float(tags.get(base.ExifImageWidth, 0)), float(tags.get(base.FocalLengthIn35mmFilm, 0))
    except Exception:  # not an image, or no valid EXIF data
        return None
    if focal_mm > 0 and density > 0 and unit and taken_width > 0:
        return _pinhole(focal_mm * density / unit * max(width, height) / taken_width, width, height), (width, height)
    if film_mm > 0:
        return _pinhole(film_mm / _FILM_WIDTH_MM * max(width, height), width, height), (width, height)
    return None


PLAIN = Format(recognize, read)

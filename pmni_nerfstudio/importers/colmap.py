# SPDX-License-Identifier: Apache-2.0
"""COLMAP models, text or binary, with normal maps named like the images. World and units are the model's.

Only cameras and images are read: since COLMAP 3.12 a model also has rigs and frames, but each image still has its own
pose. pycolmap is not used: version 4.2.1 does not return from some damaged files while its memory grows, it aborts in a
process that has imported Open3D 0.19, and it has no wheel for Linux on ARM.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.data.camera_files import LARGEST
from pmni_nerfstudio.data.files import printable, read_text, reason
from pmni_nerfstudio.data.listing import natural_key
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.importers.colmap_dense import find_stereo_normals
from pmni_nerfstudio.importers.file_matching import match_files, plain_path
from pmni_nerfstudio.importers.map_folders import find_normals, require_normals
from pmni_nerfstudio.importers.posed_images import PosedImage, attach_maps, check_camera, find_image, pinhole
from pmni_nerfstudio.importers.source import Format, ImportOptions, Lens, Source

_MODEL_FOLDERS = (
    "",
    "sparse",
    "sparse/*",
    "colmap/sparse/*",
    "colmap/sparse",
    "colmap",
    "distorted/sparse/*",
    "dense/sparse",
    "dense/*/sparse",
    "undistorted/sparse",
    "undistorted/sparse/*",
    "sparse_txt",
    "model",
    "models/*",
)
"""Folders that may hold models, in order of preference between models with as many views."""
_MODELS = {
    "SIMPLE_PINHOLE": (0, "f cx cy"),
    "PINHOLE": (1, "fx fy cx cy"),
    "SIMPLE_RADIAL": (2, "f cx cy k1"),
    "RADIAL": (3, "f cx cy k1 k2"),
    "OPENCV": (4, "fx fy cx cy k1 k2 p1 p2"),
    "OPENCV_FISHEYE": (5, "fx fy cx cy k1 k2 k3 k4"),
    "FULL_OPENCV": (6, "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6"),
    "SIMPLE_RADIAL_FISHEYE": (8, "f cx cy k1"),
    "RADIAL_FISHEYE": (9, "f cx cy k1 k2"),
    "SIMPLE_FISHEYE": (14, "f cx cy"),
    "FISHEYE": (15, "fx fy cx cy"),
}
"""Numbers and parameters of the camera models that OpenCV has as well (COLMAP's src/colmap/sensor/models.h)."""


class _Camera(NamedTuple):
    model: str
    size: tuple[int, int]
    parameters: tuple[float, ...]


class _Image(NamedTuple):
    name: str
    camera: int
    pose: tuple[float, ...]
    """Quaternion qw qx qy qz and translation of the world-to-camera transform."""


def recognize(folder: Path) -> bool:
    """Whether there is a model in one of the usual subfolders."""
    return bool(_find_models(folder))


def read(folder: Path, options: ImportOptions) -> Source:
    """Read the cameras of the model with the most images that have a normal map; others are named in a warning."""
    models = _find_models(folder)
    if not models:
        raise SceneError(f"{folder}: has no COLMAP model (cameras and images, .bin or .txt); look in sparse/0")
    dense = _dense_model(folder, models, options)
    if dense is not None:
        return dense
    if len(models) == 1:
        chosen, warnings = models[0], ()
    else:
        chosen, warnings = _largest(folder, models, options)
    model, suffix = chosen
    source = attach_maps(folder, _description(folder, model, suffix), _posed_images(folder, model, suffix), options)
    return replace(source, warnings=(*warnings, *source.warnings))


def _dense_model(folder: Path, models: list[tuple[Path, str]], options: ImportOptions) -> Source | None:
    """The model of undistorted images with the normal maps of dense stereo beside it, where there are no others."""
    if options.normals is not None or find_normals(folder).files:
        return None
    for model, suffix in models:
        files, kind = find_stereo_normals(model.parent)
        if not files:
            continue
        posed = _posed_images(folder, model, suffix)
        maps = match_files([plain_path(image.file) for image in posed], files)
        posed = [replace(image, normals=file) for image, file in zip(posed, maps)]
        description = f"{_description(folder, model, suffix)}, {kind} normal maps of its dense stereo"
        source = attach_maps(folder, description, posed, options)
        warning = (
            f"{next(iter(files.values())).parent}: holds normals of COLMAP's dense stereo ({kind}), which are off by many "
            "degrees; those of photometric stereo or of a normal estimator, in normal/, give a better surface"
        )
        return replace(source, axes="opencv", warnings=(warning, *source.warnings))
    return None


def _description(folder: Path, model: Path, suffix: str) -> str:
    return f"COLMAP model{'' if model == folder else f' in {_name(folder, model)}'} ({suffix[1:]})"


def _largest(
    folder: Path, models: list[tuple[Path, str]], options: ImportOptions
) -> tuple[tuple[Path, str], tuple[str, ...]]:
    """The model with the most images that have a normal map, and a warning that names the others."""
    files = require_normals(folder, options.normals).files
    counts, described, errors = [], [], []
    for model, suffix in models:
        try:
            _, images = _read_model(model, suffix)
            found = match_files([plain_path(image.name) for image in images.values()], files)
            counts.append(sum(file is not None for file in found))
            described.append(f"{_name(folder, model)} ({counts[-1]} of {len(images)} images)")
        except SceneError as error:
            errors.append(error)
            counts.append(-1)
            described.append(f"{_name(folder, model)} (can't be read)")
    if max(counts) < 0:
        raise errors[0]
    best = counts.index(max(counts))
    others = ", ".join(text for i, text in enumerate(described) if i != best)
    return models[best], (
        f"{folder}: has {len(models)} COLMAP models; {described[best]} with normal maps was read, and not {others}; merge "
        "the models, or keep one of them",
    )


def _posed_images(folder: Path, model: Path, suffix: str) -> list[PosedImage]:
    """Registered images of a model with their cameras."""
    cameras_file, images_file = model / f"cameras{suffix}", model / f"images{suffix}"
    cameras, images = _read_model(model, suffix)
    posed = []
    for image in sorted(images.values(), key=lambda image: image.name):
        name = printable(image.name)
        camera = cameras.get(image.camera)
        if camera is None:
            raise SceneError(f"{images_file}: {name} has camera {image.camera}, which is not in {cameras_file.name}")
        K, lens = _intrinsics(cameras_file, image.camera, camera)
        quaternion, translation = np.array(image.pose[:4]), np.array(image.pose[4:])
        norm = np.linalg.norm(quaternion)
        if not np.isfinite(image.pose).all() or not 0 < norm < np.inf:
            raise SceneError(f"{images_file}: the pose of {name} is not finite; export the model again")
        R = Rotation.from_quat(np.roll(quaternion / norm, -1)).as_matrix()
        c2w = np.eye(4)
        c2w[:3, :3], c2w[:3, 3] = R.T, -R.T @ translation
        check_camera(images_file, name, K, c2w)
        posed.append(PosedImage(name, K, camera.size, c2w, lens, find_image(folder, name)))
    if not posed:
        raise SceneError(f"{model}: holds no images, because COLMAP registered none; run the reconstruction again")
    return posed


def _read_model(model: Path, suffix: str) -> tuple[dict[int, _Camera], dict[int, _Image]]:
    cameras_file, images_file = model / f"cameras{suffix}", model / f"images{suffix}"
    try:
        if suffix == ".bin":
            return _read_cameras_binary(cameras_file), _read_images_binary(images_file)
        return _read_cameras_text(cameras_file), _read_images_text(images_file)
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise SceneError(f"{model}: the model can't be read ({reason(error)}); export it again with COLMAP") from error


def _find_models(folder: Path) -> list[tuple[Path, str]]:
    """Folders and suffixes of the models' files."""
    found = {}
    for pattern in _MODEL_FOLDERS:
        for place in sorted(folder.glob(pattern), key=lambda path: natural_key(path.name)) if pattern else [folder]:
            for suffix in (".bin", ".txt"):
                if all((place / f"{name}{suffix}").is_file() for name in ("cameras", "images")):
                    found.setdefault(place, suffix)
    return list(found.items())


def _name(folder: Path, model: Path) -> str:
    return model.relative_to(folder).as_posix()


def _unpack(file: BinaryIO, layout: str) -> tuple:
    """Next values of a little-endian file; raises struct.error at its end."""
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def _read_cameras_binary(path: Path) -> dict[int, _Camera]:
    cameras = {}
    with path.open("rb") as file:
        (count,) = _unpack(file, "Q")
        for _ in range(count):
            number, model, width, height = _unpack(file, "IiQQ")
            name = next((name for name, (value, _) in _MODELS.items() if value == model), None)
            if name is None:
                raise SceneError(f"{path}: camera model {model} is not supported; undistort the images with COLMAP")
            cameras[number] = _Camera(name, (width, height), _unpack(file, f"{len(_MODELS[name][1].split())}d"))
    return cameras


def _read_images_binary(path: Path) -> dict[int, _Image]:
    images, size = {}, path.stat().st_size
    with path.open("rb") as file:
        (count,) = _unpack(file, "Q")
        for _ in range(count):
            number, *pose, camera = _unpack(file, "I7dI")
            name = b"".join(iter(lambda: file.read(1).strip(b"\0"), b"")).decode("utf-8")
            (points,) = _unpack(file, "Q")
            if file.tell() + 24 * points > size:
                raise ValueError(f"{path.name} is truncated")
            file.seek(24 * points, 1)
            images[number] = _Image(name, camera, tuple(pose))
    return images


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file, without its comments."""
    yield from (line for line in read_text(path).splitlines() if not line.lstrip().startswith("#"))


def _read_cameras_text(path: Path) -> dict[int, _Camera]:
    cameras = {}
    for line in filter(str.strip, _lines(path)):
        number, model, width, height, *parameters = line.split()
        cameras[int(number)] = _Camera(model, (int(width), int(height)), tuple(map(float, parameters)))
    return cameras


def _read_images_text(path: Path) -> dict[int, _Image]:
    images, lines = {}, _lines(path)
    for line in filter(str.strip, lines):
        number, *pose, camera, name = line.split(maxsplit=9)
        if len(pose) != 7:
            raise ValueError(f"{path.name} is truncated")
        images[int(number)] = _Image(name.strip(), int(camera), tuple(map(float, pose)))
        next(lines, None)  # the image's points
    return images


def _intrinsics(path: Path, number: int, camera: _Camera) -> tuple[np.ndarray, Lens]:
    if camera.model not in _MODELS:
        raise SceneError(
            f"{path}: camera model {printable(camera.model)} is not supported; undistort the images with COLMAP"
        )
    names = _MODELS[camera.model][1].split()
    if len(camera.parameters) != len(names):
        raise SceneError(
            f"{path}: camera {number} has {len(camera.parameters)} parameters of {len(names)}; export the model again"
        )
    value = dict(zip(names, camera.parameters))
    if not np.isfinite(camera.parameters).all() or not all(0 < side < LARGEST for side in camera.size):
        raise SceneError(f"{path}: camera {number} has no finite parameters or no pixels; export the model again")
    is_fisheye = "FISHEYE" in camera.model
    order = ("k1", "k2", "k3", "k4") if is_fisheye else ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
    lens = Lens(tuple(value.get(name, 0.0) for name in order), is_fisheye)
    f = value.get("f", 0.0)
    return pinhole(value.get("fx", f), value.get("fy", f), value["cx"], value["cy"]), lens


COLMAP = Format(recognize, read)

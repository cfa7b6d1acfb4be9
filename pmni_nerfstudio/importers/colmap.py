# SPDX-License-Identifier: Apache-2.0
"""A COLMAP model, text or binary, beside normal maps named as its images are. Its world and units stay."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from nerfstudio.data.utils import colmap_parsing_utils as parsing

from pmni_nerfstudio.data.files import printable, reason
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.importers.posed_images import PosedImage, check_camera, find_image, join, pinhole
from pmni_nerfstudio.importers.source import Format, Lens, Options, Prepared

_PLACES = ("", "sparse/0", "sparse", "colmap/sparse/0", "colmap")
_MODELS = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "FULL_OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    "OPENCV_FISHEYE": ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"),
    "SIMPLE_RADIAL_FISHEYE": ("f", "cx", "cy", "k1"),
    "RADIAL_FISHEYE": ("f", "cx", "cy", "k1", "k2"),
}


def recognise(folder: Path) -> bool:
    """Whether there is a model, in one of the usual places."""
    return _find(folder) is not None


def read(folder: Path, options: Options) -> Prepared:
    """Cameras of all images that COLMAP registered."""
    found = _find(folder)
    if found is None:
        raise SceneError(f"{folder}: has no COLMAP model (cameras and images, .bin or .txt): look in sparse/0")
    model, suffix = found
    try:
        if suffix == ".bin":
            cameras = parsing.read_cameras_binary(model / "cameras.bin")
            images = _read_images(model / "images.bin")
        else:
            cameras = parsing.read_cameras_text(model / "cameras.txt")
            images = parsing.read_images_text(model / "images.txt")
    except (OSError, ValueError, KeyError, IndexError, AssertionError, OverflowError, struct.error) as error:
        raise SceneError(f"{model}: the model can't be read ({reason(error)}): write it again with COLMAP") from error
    posed = []
    for image in sorted(images.values(), key=lambda image: image.name):
        path, name = model / f"images{suffix}", printable(image.name)
        camera = cameras.get(image.camera_id)
        if camera is None:
            raise SceneError(f"{path}: {name} has camera {image.camera_id}, which is not in cameras{suffix}")
        K, lens = _camera(model / f"cameras{suffix}", camera)
        if not np.isfinite(image.qvec).all() or not np.isfinite(image.tvec).all() or not np.any(image.qvec):
            raise SceneError(f"{path}: the pose of {name} is not finite: write it again")
        R = parsing.qvec2rotmat(image.qvec / np.linalg.norm(image.qvec))
        c2w = np.eye(4)
        c2w[:3, :3], c2w[:3, 3] = R.T, -R.T @ image.tvec
        check_camera(path, name, K, c2w)
        size = (int(camera.width), int(camera.height))
        posed.append(PosedImage(name, K, size, c2w, lens, find_image(folder, name)))
    if not posed:
        raise SceneError(f"{model}: holds no image: COLMAP registered none")
    where = model.relative_to(folder).as_posix()
    return join(folder, f"COLMAP model{'' if where == '.' else f' in {where}'} ({suffix[1:]})", posed, options)


def _find(folder: Path) -> tuple[Path, str] | None:
    for place in _PLACES:
        for suffix in (".bin", ".txt"):
            if all((folder / place / f"{name}{suffix}").is_file() for name in ("cameras", "images")):
                return folder / place, suffix
    return None


def _read_images(path: Path) -> dict[int, parsing.Image]:
    """Poses of images.bin. Points are passed over: nerfstudio's reader sets memory aside for as many as the file says."""
    head, size = struct.Struct("<i7di"), path.stat().st_size
    images = {}
    with path.open("rb") as file:
        for _ in range(struct.unpack("<Q", file.read(8))[0]):
            number, *pose, camera = head.unpack(file.read(head.size))
            name = bytearray()
            while (letter := file.read(1)) not in (b"\0", b""):
                name += letter
            points = struct.unpack("<Q", file.read(8))[0]
            if file.tell() + 24 * points > size:
                raise ValueError(f"{path.name} is cut short")
            file.seek(24 * points, 1)
            images[number] = parsing.Image(
                number,
                np.array(pose[:4]),
                np.array(pose[4:]),
                camera,
                name.decode("utf-8"),
                np.empty((0, 2)),
                np.empty(0),
            )
    return images


def _camera(path: Path, camera: parsing.Camera) -> tuple[np.ndarray, Lens]:
    names = _MODELS.get(camera.model)
    if names is None:
        raise SceneError(
            f"{path}: the camera model {printable(camera.model)} isn't read: undistort the images with COLMAP first"
        )
    if len(camera.params) != len(names):
        raise SceneError(
            f"{path}: camera {camera.id} has {len(camera.params)} parameters of {len(names)}: write it again"
        )
    value = dict(zip(names, (float(number) for number in camera.params)))
    if not np.isfinite(list(value.values())).all() or camera.width <= 0 or camera.height <= 0:
        raise SceneError(f"{path}: camera {camera.id} is not finite or has no pixels: write it again")
    is_fisheye = "FISHEYE" in camera.model
    order = ("k1", "k2", "k3", "k4") if is_fisheye else ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
    lens = Lens(tuple(value.get(name, 0.0) for name in order), is_fisheye)
    f = value.get("f", 0.0)
    return pinhole(value.get("fx", f), value.get("fy", f), value["cx"], value["cy"]), lens


COLMAP = Format(recognise, read)

# SPDX-License-Identifier: Apache-2.0
"""Cameras of photographs, from whatever solved for them, joined with the normal maps and masks of the same names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pmni_nerfstudio.data.camera_files import LARGEST, is_rigid
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.importers.file_matching import axes_of, find_masks, match, need_normals
from pmni_nerfstudio.importers.source import Frame, Lens, Options, Prepared
from pmni_nerfstudio.importers.view_maps import has_cutout


@dataclass(frozen=True, eq=False)
class PosedImage:
    """A photograph and its camera."""

    file: str
    """As the source names it: a path or a label."""
    K: np.ndarray
    """(3, 3), pixel centres at integers."""
    size: tuple[int, int] | None
    """Width and height; None: the normal map's."""
    c2w: np.ndarray
    """(4, 4), rigid, OpenCV axes."""
    lens: Lens = Lens(())
    image: Path | None = None
    """Where the photograph is, if it is there."""
    normals: Path | None = None
    """Its normal map, if the source names one."""
    mask: Path | None = None
    """Its mask, if the source names one."""


def pinhole(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """K (3, 3) with pixel centres at integers, of a principal point that counts from the first pixel's corner."""
    return np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])


def check_camera(path: Path, image: str, K: np.ndarray, c2w: np.ndarray) -> None:
    """Refuse what is no pinhole and no rigid motion.

    Raises:
        SceneError
    """
    if not (np.abs(K) < LARGEST).all() or min(K[0, 0], K[1, 1]) <= 0:
        raise SceneError(f"{path}: the focal lengths of {image} are no positive numbers: write its camera again")
    if not is_rigid(c2w):
        raise SceneError(f"{path}: the pose of {image} is no rotation and shift: write it again")


def join(root: Path, said: str, images: Sequence[PosedImage], options: Options) -> Prepared:
    """Find each photograph's normal map and mask; photographs without a normal map are left out, with a warning.

    Raises:
        PmniError: there are no normal maps, none belongs to a camera, or masks are there but for some views.
    """
    has_own = any(image.normals is not None for image in images)
    normals = {} if has_own and options.normals is None else need_normals(root, options.normals)
    masks = find_masks(root)
    names = _names([image.file for image in images])
    frames, left = [], []
    for name, image in zip(names, images, strict=True):
        key = PurePosixPath(image.file).stem if "." in image.file else image.file
        file = match(key, normals) or match(name, normals) or (None if normals else image.normals)
        if file is None:
            left.append(name)
            continue
        mask = image.mask or match(key, masks) or match(name, masks) or match(file.stem, masks)
        if masks and mask is None:
            raise PmniError(f"{root}: has no mask of the view {name}, of {file}: add it, or take the view out")
        if mask is None:
            mask = next((path for path in (file, image.image) if path is not None and has_cutout(path)), None)
        frames.append(Frame(name, file, image.K, mask, image.size, image.lens, image.c2w, image.image))
    if not frames:
        example = next(iter(normals.values())).name if normals else "none"
        raise PmniError(
            f"{root}: none of the normal maps ({example} and so on) is named as one of the {len(images)} cameras' images "
            f"({images[0].file if images else 'none'} and so on): name them alike"
        )
    warnings = []
    if left:
        warnings.append(f"{root}: {len(left)} images (first {left[0]}) have no normal map and were left out")
    axes = axes_of({frame.name: frame.normals for frame in frames})
    return Prepared(said, tuple(frames), axes, warnings=tuple(warnings))


def find_image(root: Path, file: str) -> Path | None:
    """A photograph by the name that the source has for it."""
    for folder in (root, root / "images", root / "image", root / "input"):
        for suffix in ("", ".png", ".jpg", ".JPG", ".jpeg"):
            path = folder / (file + suffix)
            # unlike Path.is_file it says no of a name that is too long for any file
            if os.path.isfile(path) and path.suffix.lower() in (".png", ".jpg", ".jpeg"):
                return path
    return None


def _names(files: Sequence[str]) -> list[str]:
    """View names of image files: their stems where these differ, else with their folders."""
    stems = [PurePosixPath(file).stem if "." in file else file for file in files]
    if len(set(stems)) == len(stems) and not any("/" in stem for stem in stems):
        return stems
    long = [str(PurePosixPath(file).with_suffix("")).strip("./").replace("/", "_") for file in files]
    return long if len(set(long)) == len(long) else [f"{i:04d}" for i in range(len(files))]

# SPDX-License-Identifier: Apache-2.0
"""Views from the posed photographs of a structure-from-motion program and the normal maps and masks named like them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pmni_nerfstudio.data.camera_files import LARGEST, is_rigid
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.importers.file_matching import axes_of, find_masks, match, require_normals
from pmni_nerfstudio.importers.source import Frame, ImportOptions, Lens, Source
from pmni_nerfstudio.importers.view_maps import mask_of_view


@dataclass(frozen=True, eq=False)
class PosedImage:
    """A photograph and its camera."""

    file: str
    """Path or label of the photograph in the source."""
    K: np.ndarray
    """Intrinsics (3, 3) in pixels, pixel centers at integers."""
    size: tuple[int, int] | None
    """Width and height of the image that K belongs to; None: of the normal map."""
    c2w: np.ndarray
    """Rigid camera-to-world pose (4, 4), OpenCV axes."""
    lens: Lens = Lens(())
    image: Path | None = None
    """File of the photograph, if it exists."""
    normals: Path | None = None
    """Normal map, if the source names one."""
    mask: Path | None = None
    """Mask, if the source names one."""


def pinhole(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """Intrinsics (3, 3) with pixel centers at integers.

    Args:
        fx: focal length in pixels along x.
        fy: focal length in pixels along y.
        cx: principal point in pixels from the left edge of the image, as in COLMAP and nerfstudio.
        cy: principal point in pixels from the upper edge.
    """
    return np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])


def check_camera(path: Path, image: str, K: np.ndarray, c2w: np.ndarray) -> None:
    """Check that K is a pinhole and c2w a rigid motion.

    Raises:
        SceneError: They are not; the line names the file and the image.
    """
    if not (np.abs(K) < LARGEST).all() or min(K[0, 0], K[1, 1]) <= 0:
        raise SceneError(f"{path}: the focal lengths of {image} are not positive numbers; export the cameras again")
    if not is_rigid(c2w):
        raise SceneError(f"{path}: the pose of {image} is not a rotation and translation; export the cameras again")


def attach_maps(root: Path, description: str, images: Sequence[PosedImage], options: ImportOptions) -> Source:
    """Find the normal map and mask of each photograph; photographs without a normal map are left out with a warning.

    Raises:
        PmniError: There are no normal maps, none belongs to a camera, or only some views have a mask.
    """
    has_own = any(image.normals is not None for image in images)
    normals = {} if has_own and options.normals is None else require_normals(root, options.normals)
    masks = find_masks(root)
    names = _names([image.file for image in images])
    frames, without_normals = [], []
    for name, image in zip(names, images, strict=True):
        stem = _stem(image.file)
        file = match(stem, normals) or match(name, normals) or (None if normals else image.normals)
        if file is None:
            without_normals.append(name)
            continue
        mask = image.mask or mask_of_view(root, (stem, name, file.stem), masks, file, image.image)
        frames.append(Frame(name, file, image.K, mask, image.size, image.lens, image.c2w, image.image))
    if not frames:
        example = next(iter(normals.values())).name if normals else "none"
        raise PmniError(
            f"{root}: no normal map (the first is {example}) has the name of an image of the {len(images)} cameras (the "
            f"first is {images[0].file if images else 'none'}); name them alike"
        )
    warnings = []
    if without_normals:
        warnings.append(
            f"{root}: {len(without_normals)} images (first {without_normals[0]}) have no normal map and were left out"
        )
    axes = axes_of({frame.name: frame.normals for frame in frames})
    return Source(description, tuple(frames), axes, warnings=tuple(warnings))


def find_image(root: Path, file: str) -> Path | None:
    """File of a photograph by its path or label in the source."""
    for folder in (root, root / "images", root / "image", root / "input"):
        for suffix in ("", ".png", ".jpg", ".JPG", ".jpeg"):
            path = folder / (file + suffix)
            # Unlike Path.is_file, this is False for a name that is too long for a file.
            if os.path.isfile(path) and path.suffix.lower() in (".png", ".jpg", ".jpeg"):
                return path
    return None


def _stem(file: str) -> str:
    return PurePosixPath(file).stem if "." in file else file


def _names(files: Sequence[str]) -> list[str]:
    """View names of image files: their stems if these differ, otherwise with their folders."""
    stems = [_stem(file) for file in files]
    if len(set(stems)) == len(stems) and not any("/" in stem for stem in stems):
        return stems
    with_folders = [str(PurePosixPath(file).with_suffix("")).strip("./").replace("/", "_") for file in files]
    return with_folders if len(set(with_folders)) == len(files) else [f"{i:04d}" for i in range(len(files))]

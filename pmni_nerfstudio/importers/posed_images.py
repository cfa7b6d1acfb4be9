# SPDX-License-Identifier: Apache-2.0
"""Views from the posed photographs of a structure-from-motion program and the normal maps and masks named like them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.camera_files import LARGEST, is_rigid
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.importers.file_matching import match_files, plain_path, view_names, without_suffix
from pmni_nerfstudio.importers.map_folders import FoundMaps, find_masks, require_normals
from pmni_nerfstudio.importers.source import Frame, ImportOptions, Lens, Source
from pmni_nerfstudio.importers.view_maps import masks_of_views


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
    """Find the normal map and mask of each photograph; cameras without a map, and maps without a camera, are named.

    Raises:
        PmniError: There are no normal maps, none belongs to a camera, or only some views have a mask.
    """
    has_own = any(image.normals is not None for image in images)
    found = FoundMaps({}) if has_own and options.normals is None else require_normals(root, options.normals)
    masks = find_masks(root)
    paths = [plain_path(image.file) for image in images]
    names = view_names(paths)
    files = match_files(paths, found.files) if found.files else [image.normals for image in images]
    kept = [(i, file) for i, file in enumerate(files) if file is not None]
    if not kept:
        example = next(iter(found.files.values())).name if found.files else "none"
        raise PmniError(
            f"{root}: no normal map (the first is {example}) has the name of an image of the {len(images)} cameras (the "
            f"first is {images[0].file if images else 'none'}); name them alike"
        )
    aliases = [(paths[i], without_suffix(file.name), names[i]) for i, file in kept]
    normals, photographs = [file for _, file in kept], [images[i].image for i, _ in kept]
    own_masks = [images[i].mask for i, _ in kept]
    all_named = all(mask is not None for mask in own_masks)
    other_masks = own_masks if all_named else masks_of_views(root, aliases, masks.files, normals, photographs)
    frames = [
        Frame(names[i], file, image.K, image.mask or mask, image.size, image.lens, image.c2w, image.image)
        for (i, file), mask in zip(kept, other_masks, strict=True)
        for image in (images[i],)
    ]
    axes = FoundMaps({frame.name: frame.normals for frame in frames}).axes
    left_out = _left_out(root, [name for name, file in zip(names, files) if file is None], found, normals)
    return Source(description, tuple(frames), axes, warnings=(*found.warnings, *masks.warnings, *left_out))


def _left_out(root: Path, without_normals: Sequence[str], found: FoundMaps, used: Sequence[Path]) -> list[str]:
    """Warnings of cameras without a normal map and normal maps without a camera."""
    warnings = []
    if without_normals:
        warnings.append(
            f"{root}: {len(without_normals)} images (first {without_normals[0]}) have no normal map and were left out"
        )
    without_camera = [path for path in found.files.values() if path not in set(used)]
    if without_camera:
        warnings.append(
            f"{without_camera[0]}: is one of {len(without_camera)} normal maps, of {len(found.files)}, that have no camera "
            "and were left out; check that the names of images and normal maps agree"
        )
    return warnings


def find_image(root: Path, file: str) -> Path | None:
    """File of a photograph by its path or label in the source."""
    plain = file.strip().replace("\\", "/")
    for name in dict.fromkeys((file, plain, plain.rsplit("/", 1)[-1])):
        for folder in (root, root / "images", root / "image", root / "input"):
            for suffix in ("", ".png", ".jpg", ".JPG", ".jpeg"):
                path = folder / (name + suffix)
                # Unlike Path.is_file, this is False for a name that is too long for a file.
                if os.path.isfile(path) and path.suffix.lower() in (".png", ".jpg", ".jpeg"):
                    return path
    return None

# SPDX-License-Identifier: Apache-2.0
"""Normal map, mask and photograph of one view: reading, checks, undistortion and resampling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pmni_nerfstudio.data.files import check_file, reason
from pmni_nerfstudio.data.images import read_mask, read_normals, read_npy
from pmni_nerfstudio.data.map_checks import MISSING_LENGTH, check_mask, clean_normals
from pmni_nerfstudio.data.resample import normalized, resample_intrinsics, resample_mask, resample_normals
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.geometry.normals import vector_lengths
from pmni_nerfstudio.importers.colmap_dense import SUFFIX as COLMAP_SUFFIX
from pmni_nerfstudio.importers.colmap_dense import read_stereo_normals
from pmni_nerfstudio.importers.file_matching import match_any
from pmni_nerfstudio.importers.map_folders import PHOTO_SUFFIXES
from pmni_nerfstudio.importers.matlab import read_mat
from pmni_nerfstudio.importers.source import Frame, Lens

MIN_COVERAGE = 0.5
"""Length of a normal from which a pixel belongs to the object, where no mask says so."""
_RIM_PX = 2
"""Width of the contour along which pixels may be covered in part, in pixels."""
_FOCAL_LENGTHS = (0.01, 1e4)
"""Smallest and largest focal length, in widths and heights of the map."""
_MAX_PRINCIPAL_POINT = 100.0
"""Largest coordinate of the principal point, in widths and heights of the map."""


def read_stored_normals(path: Path) -> np.ndarray:
    """Normals (H, W, 3) float32 in their stored axes, from any format of `read_normals`, MonoSDF's .npy, MATLAB or COLMAP.

    Raises:
        SceneError: The file is broken or holds no normals.
    """
    if path.suffix.lower() == ".mat":
        arrays = [array for array in read_mat(path).values() if array.ndim == 3 and array.shape[2] == 3]
        if len(arrays) != 1:
            raise SceneError(f"{path}: holds {len(arrays)} arrays of three channels; save only the normal map")
        return arrays[0].astype(np.float32)
    if path.suffix == COLMAP_SUFFIX:
        return read_stereo_normals(path)
    if path.suffix.lower() != ".npy":
        return read_normals(path)
    normals = read_npy(path)
    if normals.ndim != 3 or 3 not in (normals.shape[0], normals.shape[2]):
        raise SceneError(f"{path}: holds an array of shape {normals.shape}; save normals as (height, width, 3)")
    if normals.shape[2] != 3:  # MonoSDF: channels first, as colors from 0 to 1
        normals = np.ascontiguousarray(np.moveaxis(normals, 0, -1))
        if normals.min() >= 0 and normals.max() <= 1:
            normals = np.where(normals.any(axis=-1, keepdims=True), 2 * normals - 1, np.float32(0))
    return normals


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a normal map or photograph; PNG and JPEG files are not decoded.

    Raises:
        SceneError: The file is broken.
    """
    if path.suffix.lower() not in PHOTO_SUFFIXES:
        height, width = read_stored_normals(path).shape[:2]
        return width, height
    check_file(path)
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.size
    except Exception as error:  # Pillow raises many types
        raise SceneError(f"{path}: is not a readable image, or is truncated; export it again") from error


def load(frame: Frame) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read and check the maps of a view.

    Returns:
        normals: (H, W, 3) float32 in their stored axes, unit length or, off the mask and in holes, zero.
        mask: (H, W) bool.
        warnings: one line each.

    Raises:
        SceneError: A file is missing or broken, or the maps do not fit together.
    """
    stored = read_stored_normals(frame.normals)
    if frame.decode is not None:
        stored = frame.decode(frame.normals, stored)
    height, width = stored.shape[:2]
    if frame.mask is None:
        mask = inferred_mask(stored)
        if not mask.any():
            raise SceneError(f"{frame.normals}: is zero everywhere; export it again or remove the view")
        if mask.all():
            raise SceneError(
                f"{frame.normals}: has no mask, and normals in every pixel; add masks (white on the object) in mask/, or "
                "set the normals of the background to zero"
            )
        _remove_coverage(stored, mask)
    else:
        mask = _read_mask(frame.mask, (width, height), frame.normals)
        check_mask(frame.mask, mask, may_be_full=frame.c2w is not None)  # in close-ups, which all cameras tell
    measured = None if frame.valid is None else _read_mask(frame.valid, (width, height), frame.normals)
    return clean_normals(frame.normals, stored, mask, measured)


def _read_mask(path: Path, size: tuple[int, int], normals: Path) -> np.ndarray:
    """Mask (H, W) at the width and height of a normal map."""
    mask = read_mask(path)
    if mask.ndim != 2:
        raise SceneError(f"{path}: holds an array of shape {mask.shape}; save masks as (height, width)")
    if mask.shape[::-1] != size:
        _check_ratio(path, mask.shape[::-1], size, normals)
        mask = resample_mask(mask, size)
    return mask


def inferred_mask(stored: np.ndarray) -> np.ndarray:
    """Mask (H, W) of normals (H, W, 3) whose background is zero: pixels that are covered by half or more.

    Renderers that filter their pictures (Blender, Mitsuba) average the normals over each pixel, so that the length at
    the rim is the covered part of the pixel. Averages of a black background in colors are (-1, -1, -1) instead.
    """
    length = vector_lengths(stored)
    mask = (length >= MIN_COVERAGE) & (length <= 2 - MIN_COVERAGE)  # false for NaN
    return mask if mask.any() else length >= MISSING_LENGTH


def _remove_coverage(stored: np.ndarray, mask: np.ndarray) -> None:
    """Bring normals (H, W, 3) at the contour of an inferred mask (H, W) to unit length, in place; see `inferred_mask`."""
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=_RIM_PX).astype(bool)
    length = vector_lengths(stored)
    rim = mask & ~inner & (length >= MIN_COVERAGE) & (length <= 2 - MIN_COVERAGE)
    stored[rim] /= length[rim, None]


def masks_of_views(
    root: Path,
    names: Sequence[Sequence[str]],
    masks: dict[str, Path],
    normals: Sequence[Path],
    images: Sequence[Path | None],
) -> list[Path | None]:
    """Mask of each view: the file with one of its names, or else the normal map or photograph if it has an alpha channel.

    Args:
        root: folder of the source, for the error message.
        names: possible names of each view's mask without suffix, in order of preference, the view's own name
            last; equally many for all views.
        masks: masks of the source by name.
        normals: normal map of each view.
        images: photograph of each view.

    Raises:
        PmniError: There are masks, but none of some view.
    """
    found = match_any(names, masks)
    missing = [i for i, path in enumerate(found) if path is None]
    if masks and missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise PmniError(
            f"{root}: has no mask of the view {names[missing[0]][-1]}{more} ({normals[missing[0]]}); add it or remove the view"
        )
    for i in missing:
        found[i] = next((path for path in (normals[i], images[i]) if path is not None and has_cutout(path)), None)
    return found


def has_cutout(path: Path) -> bool:
    """Whether a file is a PNG whose alpha channel is not constant, so that it serves as a mask."""
    if path.suffix.lower() != ".png":
        return False
    check_file(path)
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode not in ("RGBA", "LA"):
                return False
            low, high = image.getchannel("A").getextrema()
            return low != high
    except Exception as error:  # Pillow raises many types
        raise SceneError(f"{path}: is not a readable image, or is truncated; export it again") from error


def map_intrinsics(frame: Frame, size: tuple[int, int]) -> np.ndarray:
    """Intrinsics (3, 3) of a view at the width and height of its maps.

    Raises:
        SceneError: The image that the intrinsics belong to has another aspect ratio, or their values are impossible.
    """
    K = frame.K
    if frame.size is not None and frame.size != size:
        _check_ratio(frame.normals, size, frame.size, "the camera's image")
        K = resample_intrinsics(K, frame.size, size)
    focal, principal_point = np.diag(K)[:2] / size, K[:2, 2] / size
    in_range = (focal > _FOCAL_LENGTHS[0]) & (focal < _FOCAL_LENGTHS[1])
    if not (in_range & (np.abs(principal_point) < _MAX_PRINCIPAL_POINT)).all():
        raise SceneError(
            f"{frame.normals}: no camera has a focal length of {K[0, 0]:.3g}, {K[1, 1]:.3g} pixels and its principal "
            f"point at {K[0, 2]:.3g}, {K[1, 2]:.3g} in an image of {size[0]}x{size[1]}; check the calibration"
        )
    return K


def undistort(
    normals: np.ndarray, mask: np.ndarray, K: np.ndarray, lens: Lens, new_K: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Resample the maps of a view for a pinhole camera of the same pose; the normals keep their directions.

    Args:
        normals: (H, W, 3) float32, unit length or zero.
        mask: (H, W) bool.
        K: intrinsics (3, 3) of the maps.
        lens: distortion of the maps.
        new_K: intrinsics (3, 3) of the pinhole camera.

    Returns:
        Normals and mask of the same size.
    """
    if lens.is_none and np.allclose(K, new_K, rtol=1e-9, atol=1e-7):
        return normals, mask
    x, y = _undistortion_map(mask.shape, K, lens, new_K)
    share = cv2.remap(mask.astype(np.float32), x, y, cv2.INTER_LINEAR)  # zero outside the frame
    valid = mask & normals.any(axis=-1)
    valid_share = cv2.remap(valid.astype(np.float32), x, y, cv2.INTER_LINEAR)
    total = cv2.remap(normals, x, y, cv2.INTER_LINEAR)
    new_mask = share >= 0.5
    return normalized(total, new_mask & (2 * valid_share >= share)), new_mask


def resize(normals: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Normals and mask at another width and height."""
    if mask.shape[::-1] == size:
        return normals, mask
    return resample_normals(normals, mask, size)


def photograph(frame: Frame, K: np.ndarray, new_K: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """Undistorted photograph (h, w, 3) uint8 of a view; None if there is none or its aspect ratio differs.

    Args:
        frame: the view.
        K: the source's intrinsics (3, 3) at `size`.
        new_K: intrinsics (3, 3) of the result.
        size: width and height of the result.
    """
    if frame.image is None:
        return None
    try:
        with Image.open(frame.image) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except Exception as error:  # Pillow raises many types
        raise PmniError(f"{frame.image}: is not a readable image ({reason(error)}); remove it") from error
    own = (pixels.shape[1], pixels.shape[0])
    if abs(own[0] * size[1] / (own[1] * size[0]) - 1) > 0.02:
        return None
    K, new_K = (resample_intrinsics(matrix, size, own) for matrix in (K, new_K))
    if not (frame.lens.is_none and np.allclose(K, new_K)):
        x, y = _undistortion_map(pixels.shape[:2], K, frame.lens, new_K)
        pixels = cv2.remap(pixels, x, y, cv2.INTER_LINEAR)
    return pixels if own == size else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def resampled_pixels(
    path: Path, pixels: np.ndarray, lens: Lens, K: np.ndarray, new_K: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Undistorted image (H', W') whose values must not be mixed, by nearest neighbors; zero outside the source's frame.

    Args:
        path: file of the image, for error messages.
        pixels: (H, W).
        lens: distortion of the source's images.
        K: the source's intrinsics (3, 3) at `size`.
        new_K: intrinsics (3, 3) of the result.
        size: width and height of the result.

    Raises:
        SceneError: The image has another aspect ratio.
    """
    own = (pixels.shape[1], pixels.shape[0])
    if own != size:
        _check_ratio(path, own, size, "the normal maps")
    if lens.is_none and own == size and np.allclose(K, new_K):
        return pixels
    x, y = _undistortion_map((size[1], size[0]), K, lens, new_K)
    # Pixel centers at integers, in the image at its own size.
    x, y = ((at + 0.5) * (of_own / of_new) - 0.5 for at, of_own, of_new in zip((x, y), own, size))
    return cv2.remap(pixels, x.astype(np.float32), y.astype(np.float32), cv2.INTER_NEAREST)


def _undistortion_map(
    shape: tuple[int, ...], K: np.ndarray, lens: Lens, new_K: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x and y, in the distorted image with K, of each pixel of the pinhole image with new_K."""
    coefficients = np.zeros(4 if lens.is_fisheye else 8)
    coefficients[: len(lens.coefficients)] = lens.coefficients
    make_map = cv2.fisheye.initUndistortRectifyMap if lens.is_fisheye else cv2.initUndistortRectifyMap
    x, y = make_map(K, coefficients, np.eye(3), new_K, (shape[1], shape[0]), cv2.CV_32FC1)
    return x, y


def _check_ratio(path: Path, size: tuple[int, ...], other: tuple[int, ...], what: object) -> None:
    """Check that two sizes (width, height) have the same aspect ratio, up to rounding to whole pixels."""
    if abs(size[0] * other[1] / (size[1] * other[0]) - 1) > 1.5 / min(*size, *other):
        raise SceneError(
            f"{path}: has {size[0]}x{size[1]} pixels, which is not the aspect ratio of {what} ({other[0]}x{other[1]}); "
            "use maps of the whole image"
        )

# SPDX-License-Identifier: Apache-2.0
"""One view's maps of a source: read, checked, freed of distortion, brought to a camera and a size."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pmni_nerfstudio.data.files import check_file, reason
from pmni_nerfstudio.data.images import read_mask, read_normals, read_npy
from pmni_nerfstudio.data.map_checks import MISSING_LENGTH, check_mask, clean_normals
from pmni_nerfstudio.data.resample import resample_intrinsics, resample_mask, resample_normals
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.importers.file_matching import PHOTO_SUFFIXES
from pmni_nerfstudio.importers.matlab import read_mat
from pmni_nerfstudio.importers.source import Frame, Lens

_FOCAL = (0.01, 1e4)
"""Shortest and longest focal length, in widths and heights of the map."""
_FARTHEST_CENTRE = 100.0
"""Of the principal point, likewise."""


def read_stored_normals(path: Path) -> np.ndarray:
    """Normals (H, W, 3) float32 as they are stored: what `read_normals` reads, MonoSDF's .npy and MATLAB files.

    Raises:
        SceneError: the file is broken or holds no normals.
    """
    if path.suffix.lower() == ".mat":
        arrays = [array for array in read_mat(path).values() if array.ndim == 3 and array.shape[2] == 3]
        if len(arrays) != 1:
            raise SceneError(f"{path}: holds {len(arrays)} maps of three channels: save the normal map alone")
        return arrays[0].astype(np.float32)
    if path.suffix.lower() != ".npy":
        return read_normals(path)
    normals = read_npy(path)
    if normals.ndim != 3 or 3 not in (normals.shape[0], normals.shape[2]):
        raise SceneError(f"{path}: holds an array of shape {normals.shape}: save normals as (height, width, 3)")
    if normals.shape[2] != 3:  # MonoSDF has channels first, as colours from 0 to 1
        normals = np.ascontiguousarray(np.moveaxis(normals, 0, -1))
        if normals.min() >= 0 and normals.max() <= 1:
            normals = np.where(normals.any(axis=-1, keepdims=True), 2 * normals - 1, np.float32(0))
    return normals


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a normal map or photograph, of a PNG or JPEG without decoding it.

    Raises:
        SceneError: the file is broken.
    """
    if path.suffix.lower() not in PHOTO_SUFFIXES:
        height, width = read_stored_normals(path).shape[:2]
        return width, height
    check_file(path)
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.size
    except Exception as error:  # Pillow's parsers raise whatever they meet
        raise SceneError(f"{path}: is no image that can be read, or is cut short: export it again") from error


def load(frame: Frame) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A view's normals in their stored axes, its mask, and warnings.

    Returns:
        normals (H, W, 3) float32, unit on the mask and zero off it; mask (H, W) bool; one line each.

    Raises:
        SceneError: one line with the source's file and what is wrong.
    """
    stored = read_stored_normals(frame.normals)
    height, width = stored.shape[:2]
    if frame.mask is None:
        with np.errstate(over="ignore", invalid="ignore"):
            mask = np.linalg.norm(stored, axis=-1) >= MISSING_LENGTH  # false for NaN
        if not mask.any():
            raise SceneError(f"{frame.normals}: is zero everywhere: export it again, or take the view out")
        if mask.all():
            raise SceneError(
                f"{frame.normals}: has no mask, and normals in every pixel: add masks, white on the object, in "
                "mask/, or make the normals zero off the object"
            )
    else:
        mask = read_npy(frame.mask) > 0.5 if frame.mask.suffix.lower() == ".npy" else read_mask(frame.mask)
        if mask.ndim != 2:
            raise SceneError(f"{frame.mask}: holds an array of shape {mask.shape}: save masks as (height, width)")
        if mask.shape != (height, width):
            _check_ratio(frame.mask, mask.shape[::-1], (width, height), frame.normals)
            mask = resample_mask(mask, (width, height))
        check_mask(frame.mask, mask)
    return clean_normals(frame.normals, stored, mask)


def has_cutout(path: Path) -> bool:
    """Whether a PNG has an alpha channel that isn't the same everywhere: a mask, then."""
    if path.suffix.lower() != ".png":
        return False
    check_file(path)
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode not in ("RGBA", "LA"):
                return False
            low, high = image.getchannel("A").getextrema()
            return low != high
    except Exception as error:  # Pillow's parsers raise whatever they meet
        raise SceneError(f"{path}: is no image that can be read, or is cut short: export it again") from error


def map_intrinsics(frame: Frame, size: tuple[int, int]) -> np.ndarray:
    """K (3, 3) of a view's maps, which have this width and height.

    Raises:
        SceneError: the image that the camera is of has another shape, not only another size, or it is no camera.
    """
    K = frame.K
    if frame.size is not None and frame.size != size:
        _check_ratio(frame.normals, size, frame.size, "its camera's image")
        K = resample_intrinsics(K, frame.size, size)
    focal, centre = np.diag(K)[:2] / size, K[:2, 2] / size
    if not ((focal > _FOCAL[0]) & (focal < _FOCAL[1]) & (np.abs(centre) < _FARTHEST_CENTRE)).all():
        raise SceneError(
            f"{frame.normals}: no camera has a focal length of {K[0, 0]:.3g}, {K[1, 1]:.3g} pixels and its centre at "
            f"{K[0, 2]:.3g}, {K[1, 2]:.3g} of {size[0]}x{size[1]}: check its calibration"
        )
    return K


def straighten(
    normals: np.ndarray, mask: np.ndarray, K: np.ndarray, lens: Lens, new_K: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same view through a pinhole K' without distortion, at the same size; directions stay, pixels move.

    Args:
        normals: (H, W, 3) float32, unit on the mask and zero off it.
        mask: (H, W) bool.
        K: (3, 3) of the maps.
        lens: of the maps.
        new_K: (3, 3).
    """
    if lens.is_none and np.allclose(K, new_K, rtol=1e-9, atol=1e-7):
        return normals, mask
    x, y = _places(mask.shape, K, lens, new_K)
    share = cv2.remap(mask.astype(np.float32), x, y, cv2.INTER_LINEAR)  # nothing is beyond the frame
    total = cv2.remap(normals, x, y, cv2.INTER_LINEAR)
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    new_mask = (share >= 0.5) & (length[..., 0] > 1e-3)
    return np.divide(total, length, out=np.zeros_like(total), where=new_mask[..., None]), new_mask


def resize(normals: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Normals and mask at a width and height."""
    if mask.shape[::-1] == size:
        return normals, mask
    return resample_normals(normals, mask, size)


def photograph(frame: Frame, K: np.ndarray, new_K: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """A view's photograph (h, w, 3) uint8 at a width and height; None if it has none, or one of another shape.

    Args:
        frame: of the view.
        K: (3, 3) of `size`, as the source has it.
        new_K: (3, 3) of `size`, as it shall be.
        size: of the picture.
    """
    if frame.image is None:
        return None
    try:
        with Image.open(frame.image) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except Exception as error:  # Pillow's parsers raise whatever they meet
        raise PmniError(f"{frame.image}: is no image that can be read ({reason(error)}): take it out") from error
    own = (pixels.shape[1], pixels.shape[0])
    if abs(own[0] * size[1] / (own[1] * size[0]) - 1) > 0.02:
        return None
    K, new_K = (resample_intrinsics(matrix, size, own) for matrix in (K, new_K))
    if not (frame.lens.is_none and np.allclose(K, new_K)):
        x, y = _places(pixels.shape[:2], K, frame.lens, new_K)
        pixels = cv2.remap(pixels, x, y, cv2.INTER_LINEAR)
    return pixels if own == size else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _places(shape: tuple[int, ...], K: np.ndarray, lens: Lens, new_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in a distorted image of K each pixel of a straight one of K' is."""
    coefficients = np.zeros(4 if lens.is_fisheye else 8)
    coefficients[: len(lens.coefficients)] = lens.coefficients
    find = cv2.fisheye.initUndistortRectifyMap if lens.is_fisheye else cv2.initUndistortRectifyMap
    x, y = find(K, coefficients, np.eye(3), new_K, (shape[1], shape[0]), cv2.CV_32FC1)
    return x, y


def _check_ratio(path: Path, size: tuple[int, ...], other: tuple[int, ...], what: object) -> None:
    """Refuse sizes (width, height) that are not one image's at two resolutions: a side is rounded to a whole pixel."""
    if abs(size[0] * other[1] / (size[1] * other[0]) - 1) > 1.5 / min(*size, *other):
        raise SceneError(
            f"{path}: is {size[0]}x{size[1]} pixels, which is not the shape of {what} ({other[0]}x{other[1]}): "
            "it has to show the same frame"
        )

# SPDX-License-Identifier: Apache-2.0
"""Lossless reading and writing of normal maps, masks and depth maps as EXR, PNG and NPY.

EXR files are read with the OpenEXR project's own package: OpenCV's reader is disabled unless an environment variable is
set, and pyexr is a wrapper of OpenEXR.
"""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import OpenEXR
import tifffile
from PIL import Image, UnidentifiedImageError

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.exr_channels import interleaved, normal_channels, read_channels, vector_channels
from pmni_nerfstudio.data.files import MAX_PIXELS, check_file, check_pixels, read_bytes, reason
from pmni_nerfstudio.data.npz import read_npz
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.normals import has_normal, strips

NORMAL_SUFFIXES = (".exr", ".png", ".npy")
OTHER_NORMAL_SUFFIXES = (".tif", ".tiff", ".pfm", ".npz", ".jpg", ".jpeg", ".webp", ".bmp")
"""Read only in folders without files of the usual kinds, beside which they often are previews."""
MASK_SUFFIXES = (".png", ".jpg", ".jpeg")
OTHER_MASK_SUFFIXES = (".tif", ".tiff", ".bmp", ".webp", ".pgm", ".npy", ".npz", ".exr")
"""Read only in folders without files of the usual kinds."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".exr")
DEPTH_SUFFIXES = (".npy",)

_IMAGE_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM")
_LOG_COMPRESSIONS = (34676, 34677)
"""TIFF's SGILOG and SGILOG24."""


def read_normals(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a normal map as it is stored, with neither a change of axes nor normalization.

    Args:
        path: .exr (float or half; channels R G B or X Y Z, or a renderer's layer of normals), .npy, .npz with one array, .pfm or .tif of floats, or an image
            of 8 or 16 bits, value / max * 2 - 1, whose alpha channel is ignored. Black pixels of images have no normal
            and become zero: decoded, they would be (-1, -1, -1), which is not a unit vector.

    Returns:
        (H, W, 3) float32. Values are not checked.

    Raises:
        SceneError: the file can't be decoded, or does not have three channels.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*NORMAL_SUFFIXES, *OTHER_NORMAL_SUFFIXES):
        raise SceneError(
            f"{path}: normals can't be read from {suffix} files; save them as one of {', '.join(NORMAL_SUFFIXES)}"
        )
    normals = read_exr(path, normals=True) if suffix == ".exr" else _read_array(path)
    if normals.dtype.kind != "f":
        normals = _decode_color_normals(path, normals)
    if normals.ndim != 3 or normals.shape[2] != 3:
        raise SceneError(f"{path}: contains an array of shape {normals.shape}; save normals as (height, width, 3)")
    return normals


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a mask: true where the image is above half of its range.

    The range is that of the type, or 1 or 255 if no value is larger, or, in an image of two values, between them. Color
    images use the brightest channel, images with a varying alpha channel only that channel.

    Returns:
        (H, W) bool.

    Raises:
        SceneError: the file can't be decoded.
    """
    path = Path(path)
    image = _read_array(path)
    if image.ndim == 3:
        alpha = image[..., 3] if image.shape[2] == 4 else None
        has_cutout = alpha is not None and alpha.min() != alpha.max()
        image = alpha if has_cutout and alpha is not None else image[..., :3].max(axis=2)
    return image > _mask_threshold(path, image)


def _mask_threshold(path: Path, image: np.ndarray) -> float:
    """Value above which pixels (H, W) of a mask are on the object."""
    low, high = float(image.min()), float(image.max())
    if high <= 1:
        return 0.5
    top = 255.0 if image.dtype.kind == "f" or high <= 255 else float(_top(path, image))
    is_two_valued = low < high and bool(((image == low) | (image == high)).all())
    if is_two_valued:  # such as labels 0 and 2, or gray 0 and 100
        return (low + high) / 2
    # A dim mask, smoothed or compressed, but not the noise of an empty one.
    return high / 2 if 0.2 * top <= high <= top / 2 else top / 2


def read_photograph(path: Path) -> np.ndarray:
    """Read an image (H, W) or (H, W, 3) RGB, uint8, uint16 or float32, at its own bit depth and without its alpha channel.

    Raises:
        SceneError: the file can't be decoded, or has other pixels.
    """
    image = _read_array(path)
    if image.dtype not in (np.uint8, np.uint16, np.float32) or image.ndim not in (2, 3):
        raise SceneError(f"{path}: contains {image.dtype} pixels; export it with 8 or 16 bits")
    return image if image.ndim == 2 else image[..., :3]


def read_depth(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a depth map from .npy: z depth up to scale.

    Returns:
        (H, W) float32, zero where the depth is unknown (stored as NaN, infinity or zero).

    Raises:
        SceneError: the file can't be decoded, is not a map, or contains negative depths.
    """
    depth = read_npy(Path(path))
    if depth.ndim != 2:
        raise SceneError(f"{path}: contains an array of shape {depth.shape}; save depths as (height, width)")
    if (depth < 0).any():
        raise SceneError(
            f"{path}: contains negative depths; save depth along the viewing direction, zero or NaN where unknown"
        )
    return np.where(np.isfinite(depth), depth, np.float32(0))


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a float array from .npy. Pickled objects are rejected.

    Returns:
        float32 array.

    Raises:
        SceneError: the file is broken, contains pickled objects, is not a float array, or is too large.
    """
    array = open_npy(path)
    if array.size > 3 * MAX_PIXELS:
        raise SceneError(
            f"{path}: contains an array of shape {array.shape}, which is too large for a map; save one view per file"
        )
    with np.errstate(over="ignore"):  # becomes infinity, which callers check anyway
        return np.array(array, dtype=np.float32)


def open_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Memory-map a float array in .npy: only the header is read.

    Raises:
        SceneError: the file is broken, contains pickled objects, or is not a float array.
    """
    check_file(Path(path))
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's header parser raises any error of Python's parser
        raise SceneError(f"{path}: can't be read ({reason(error)}); write it again with numpy.save") from error
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        raise SceneError(f"{path}: is not a float array; save it as float32")
    return array


def read_exr(path: str | os.PathLike[str], normals: bool = False) -> np.ndarray:
    """Read an EXR file, float or half, with one or three channels; an alpha channel is ignored.

    Args:
        path: EXR file.
        normals: whether the layer of normals is read from a file with many channels, which is refused otherwise.

    Returns:
        (H, W, 3) float32 of the channels R G B or X Y Z, or (H, W) of a single channel.

    Raises:
        SceneError: the file can't be decoded, has other channels, or is cropped to a part of its display window.
    """
    path = Path(path)
    channels = read_channels(path)
    if len(channels) == 1:
        return next(iter(channels.values()))
    chosen = normal_channels(path, channels) if normals else vector_channels(path, channels)
    return interleaved([channels.pop(name) for name in chosen])


def write_exr(path: str | os.PathLike[str], array: np.ndarray, half: bool = False) -> None:
    """Write an EXR file atomically.

    Args:
        path: target file.
        array: (H, W, 3) as R G B, (H, W, 4) as R G B A, or (H, W) as Y.
        half: whether to write half instead of float.

    Raises:
        ValueError: the array has another shape.
    """
    names = {2: {0: "Y"}, 3: {3: "RGB", 4: "RGBA"}}.get(array.ndim, {})
    channels = array.shape[2] if array.ndim == 3 else 0
    if channels not in names:
        raise ValueError(f"array: an EXR file is written from (H, W), (H, W, 3) or (H, W, 4), not {array.shape}")
    # OpenEXR ignores strides and needs contiguous arrays.
    pixels = np.ascontiguousarray(array, dtype=np.float16 if half else np.float32)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with atomic_path(path) as temporary:
        OpenEXR.File(header, {names[channels]: pixels}).write(str(temporary))


def write_png(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write a PNG file atomically (see `png_bytes`).

    Raises:
        ValueError: the array has another type or shape.
    """
    encoded = png_bytes(array)
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)


def png_bytes(array: np.ndarray) -> bytes:
    """Encode an image as PNG.

    Args:
        array: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16, or bool (as 0 and 255).

    Raises:
        ValueError: the array has another type or shape.
    """
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError(
            f"array: a PNG file is written from uint8, uint16 or bool images, not {array.dtype} {array.shape}"
        )
    if channels > 1:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR if channels == 3 else cv2.COLOR_RGBA2BGRA)
    return cv2.imencode(".png", array)[1].tobytes()


def data_uri(content: bytes, kind: str) -> str:
    """Encode content of a media type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _decode_color_normals(path: Path, image: np.ndarray) -> np.ndarray:
    """Decode colors to normals (H, W, 3) float32; black becomes zero."""
    if image.ndim != 3:
        raise SceneError(f"{path}: is a grayscale image; export normals as RGB")
    image, scale = image[..., :3], np.float32(2 / _top(path, image))
    normals = np.empty(image.shape, dtype=np.float32)
    for rows in strips(len(image)):
        np.multiply(image[rows], scale, out=normals[rows])
        normals[rows] -= np.float32(1)
        normals[rows][~has_normal(image[rows])] = 0
    return normals


def _read_array(path: Path) -> np.ndarray:
    """Pixels of a map in any format that is read: (H, W) or (H, W, channels), at its own type."""
    suffix = path.suffix.lower()
    if suffix == ".exr":
        return read_exr(path)
    if suffix == ".npy":
        return read_npy(path)
    if suffix == ".npz":
        arrays = read_npz(path, lambda name: True, 12 * MAX_PIXELS)
        if len(arrays) != 1:
            raise SceneError(f"{path}: holds {len(arrays)} arrays; save only the map")
        (array,) = arrays.values()
        if array.dtype.kind not in "fub":
            raise SceneError(f"{path}: is not a float array; save it as float32")
        return array.astype(
            np.uint8 if array.dtype.kind == "b" else array.dtype if array.dtype.kind == "u" else np.float32
        )
    if suffix in (".tif", ".tiff"):
        _check_tiff(path)
    return _read_pfm(path) if suffix == ".pfm" else _read_image(path)


def _check_tiff(path: Path) -> None:
    """Check a TIFF file's size, and that it does not store the logarithm of luminance, which loses negative values.

    OpenCV writes floats like that unless told otherwise.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(read_bytes(path))) as file:
            page: Any = file.pages[0]
            check_pixels(path, int(page.imagewidth), int(page.imagelength))  # Pillow does not read all kinds
            compression = int(page.compression)
    except SceneError:
        raise
    except Exception as error:  # the library raises errors of many types
        raise SceneError(f"{path}: is not a readable TIFF file ({reason(error)}); export it again") from error
    if compression in _LOG_COMPRESSIONS:
        raise SceneError(
            f"{path}: is a TIFF file of compression LogLuv, which has lost the negative values; save normals as EXR, or as "
            "TIFF without compression"
        )


def _read_pfm(path: Path) -> np.ndarray:
    """Pixels of a portable float map, (H, W) or (H, W, 3) float32; its rows are stored from the bottom to the top."""
    content = read_bytes(path)
    header = re.match(rb"(PF|Pf)\s+(\d{1,6})\s+(\d{1,6})\s+(-?[0-9.eE+-]+)\s", content)
    if header is None:
        raise SceneError(f"{path}: is not a PFM file; export it again")
    width, height, channels = int(header[2]), int(header[3]), 3 if header[1] == b"PF" else 1
    check_pixels(path, width, height)
    kind = "<f4" if header[4].startswith(b"-") else ">f4"
    if len(content) - header.end() < 4 * width * height * channels:
        raise SceneError(f"{path}: is truncated; export the PFM file again")
    values = np.frombuffer(content, kind, width * height * channels, header.end()).astype(np.float32)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.ascontiguousarray(values.reshape(shape)[::-1])


def _read_image(path: Path) -> np.ndarray:
    """Decode a PNG, JPEG, TIFF, WebP, BMP or PGM file to (H, W), (H, W, 3) RGB or (H, W, 4) RGBA at its own bit depth."""
    encoded = read_bytes(path)
    image = None
    formats = _IMAGE_FORMATS if path.suffix.lower() not in MASK_SUFFIXES else ("PNG", "JPEG")
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as picture:
            check_pixels(path, *picture.size)
            if picture.format == "JPEG":
                return np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
            # libpng prints errors to stderr; files with wrong checksums are rejected before that.
            picture.verify()
    except UnidentifiedImageError as error:
        if path.suffix.lower() not in (".tif", ".tiff"):  # Pillow knows no TIFF of three floats
            raise SceneError(f"{path}: is not a readable image, or is truncated; export it again") from error
    except SceneError:
        raise
    except Image.DecompressionBombError as error:
        raise SceneError(f"{path}: is too large according to its header ({reason(error)}); export it again") from error
    except Exception as error:  # Pillow's parsers raise errors of many types
        raise SceneError(f"{path}: is not a readable image, or is truncated; export it again") from error
    try:
        # Pillow would reduce 16-bit colors to 8 bits.
        image = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise SceneError(f"{path}: is not a readable image ({reason(error)}); export it again") from error
    if image is None:
        raise SceneError(f"{path}: is not a readable image; export it again")
    if image.ndim == 3:
        code = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        cv2.cvtColor(image, code, dst=image)  # in place
    return image


def _top(path: Path, image: np.ndarray) -> int:
    """Largest value of an image's type."""
    if image.dtype not in (np.uint8, np.uint16):
        raise SceneError(f"{path}: contains {image.dtype} pixels; export it with 8 or 16 bits")
    return int(np.iinfo(image.dtype).max)

# SPDX-License-Identifier: Apache-2.0
"""Maps in files: normals, masks and depths, as EXR, PNG and NPY, read and written without loss.

EXR goes through the OpenEXR project's own package, since OpenCV's reader is off unless an environment variable is set.
"""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
from PIL import Image

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.files import check_file, reason
from pmni_nerfstudio.errors import SceneError

NORMAL_SUFFIXES = (".exr", ".png", ".npy")
MASK_SUFFIXES = (".png", ".jpg", ".jpeg")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".exr")
DEPTH_SUFFIXES = (".npy",)

_EXR_MAGIC = b"\x76\x2f\x31\x01"
_MAX_PIXELS = 1 << 27
"""Of a map: more is a header that lies, or a bomb. 134 million are 1.6 GB as normals."""
_NORMAL_CHANNELS = (("R", "G", "B"), ("X", "Y", "Z"))


def read_normals(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a normal map as it is stored: no change of axes, no renormalisation.

    Args:
        path: .exr (float or half, channels R G B or X Y Z), .png (8 or 16 bit, value / max * 2 - 1; an alpha channel is
            dropped) or .npy (floats). A black PNG pixel is "no normal" and becomes zero: as a normal it would be
            (-1, -1, -1), which is no unit vector.

    Returns:
        (H, W, 3) float32, in [-1, 1] if the file is right. It may hold anything else: the caller checks.

    Raises:
        SceneError: the file can't be decoded, or isn't a map of three channels.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in NORMAL_SUFFIXES:
        raise SceneError(
            f"{path}: normals aren't read from {suffix} files: save it as one of {', '.join(NORMAL_SUFFIXES)}"
        )
    if suffix == ".png":
        normals = _decode_png_normals(path, _read_image(path))
    else:
        normals = read_exr(path) if suffix == ".exr" else read_npy(path)
    if normals.ndim != 3 or normals.shape[2] != 3:
        raise SceneError(f"{path}: holds an array of shape {normals.shape}: save normals as (height, width, 3)")
    return normals


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a mask: true where the image is above half of its type's range (of 1 where the image holds only 0 and 1).

    Of colours, the brightest channel counts; of an image with an alpha channel that varies, only that.

    Returns:
        (H, W) bool.

    Raises:
        SceneError: the file can't be decoded.
    """
    image = _read_image(Path(path))
    if image.ndim == 3:
        alpha = image[..., 3] if image.shape[2] == 4 else None
        has_cutout = alpha is not None and alpha.min() != alpha.max()
        image = alpha if has_cutout and alpha is not None else image[..., :3].max(axis=2)
    top = 1 if image.max() <= 1 else _top(Path(path), image)
    return image > top / 2


def read_depth(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a depth map from .npy: z depth, up to one scale a view.

    Returns:
        (H, W) float32, zero where the depth is unknown (integrators write NaN, infinity or zero there).

    Raises:
        SceneError: the file can't be decoded, isn't a map, or holds negative depths.
    """
    depth = read_npy(Path(path))
    if depth.ndim != 2:
        raise SceneError(f"{path}: holds an array of shape {depth.shape}: save depths as (height, width)")
    if (depth < 0).any():
        raise SceneError(f"{path}: holds negative depths: depth is along the viewing direction, zero or NaN if unknown")
    return np.where(np.isfinite(depth), depth, np.float32(0))


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an array of floats from .npy, never a pickle.

    Returns:
        float32, of the file's shape.

    Raises:
        SceneError: the file is broken, holds a pickle, or holds no floats.
    """
    array = open_npy(path)
    if array.size > 3 * _MAX_PIXELS:
        raise SceneError(f"{path}: holds an array of shape {array.shape}: no map is as large")
    with np.errstate(over="ignore"):  # to infinity, which the caller has to look for anyway
        return np.array(array, dtype=np.float32)


def open_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Open an array of floats in .npy without reading it: only the header is parsed, the values stay on the disk.

    Raises:
        SceneError: as `read_npy`.
    """
    check_file(Path(path))
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's parser of headers raises whatever Python's own does
        raise SceneError(f"{path}: can't be read ({reason(error)}): write it again with numpy.save") from error
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        raise SceneError(f"{path}: holds no array of floats: save it as float32")
    return array


def read_exr(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an EXR file, float or half, of one or three channels (an alpha channel is dropped).

    Returns:
        (H, W, 3) float32 of the channels R G B (or X Y Z), or (H, W) of a file's only channel.

    Raises:
        SceneError: the file can't be decoded, has other channels, or is cropped to a part of its frame.
    """
    path = Path(path)
    # OpenEXR prints to stderr what it dislikes; a file that is no EXR at all is turned away before that.
    if _read_bytes(path, 4) != _EXR_MAGIC:
        raise SceneError(f"{path}: is no EXR file: export it again")
    try:
        with OpenEXR.File(str(path), header_only=True) as file:
            # Closing empties the header.
            header = file.header()
            low, high = (np.asarray(corner, dtype=np.int64) for corner in header["dataWindow"])
            is_whole = np.array_equal(header["dataWindow"], header["displayWindow"])
        _check_pixels(path, *(int(side) for side in high - low + 1))
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {
                name: channel.pixels.astype(np.float32) for name, channel in file.channels().items() if name != "A"
            }
        if len({pixels.shape for pixels in channels.values()}) > 1:
            raise ValueError("channels of different sizes")
    except SceneError:
        raise
    except Exception as error:  # the binding raises whatever it meets
        # The library's own message is of little help: a file cut short "has 0 parts".
        raise SceneError(f"{path}: broken EXR file, cut short or damaged: export it again") from error
    if not is_whole:
        raise SceneError(f"{path}: is cropped (data window and display window differ): export the whole frame")
    if len(channels) == 1:
        return next(iter(channels.values()))
    for names in _NORMAL_CHANNELS:
        if set(names) == channels.keys():
            return np.stack([channels[name] for name in names], axis=-1)
    raise SceneError(
        f"{path}: has the channels {', '.join(ascii(name)[1:-1] for name in sorted(channels)) or '(none)'}: export R, G, B only"
    )


def write_exr(path: str | os.PathLike[str], array: np.ndarray, half: bool = False) -> None:
    """Write an EXR file, atomically.

    Args:
        path: where to.
        array: (H, W, 3) as R G B, (H, W, 4) as R G B A, or (H, W) as Y.
        half: 16-bit floats instead of 32-bit ones.

    Raises:
        ValueError: the array has another shape.
    """
    names = {2: {0: "Y"}, 3: {3: "RGB", 4: "RGBA"}}.get(array.ndim, {})
    channels = array.shape[2] if array.ndim == 3 else 0
    if channels not in names:
        raise ValueError(f"array: an EXR is written from (H, W), (H, W, 3) or (H, W, 4), not {array.shape}")
    # OpenEXR takes the memory as it lies, whatever the strides say: only a contiguous array comes out right.
    pixels = np.ascontiguousarray(array, dtype=np.float16 if half else np.float32)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with atomic_path(path) as temporary:
        OpenEXR.File(header, {names[channels]: pixels}).write(str(temporary))


def write_png(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write a PNG file (see `png_bytes`), atomically.

    Raises:
        ValueError: the array has another type or shape.
    """
    encoded = png_bytes(array)
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)


def png_bytes(array: np.ndarray) -> bytes:
    """A PNG file's content.

    Args:
        array: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16, or bool (as 0 and 255).

    Raises:
        ValueError: the array has another type or shape.
    """
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError(f"array: a PNG is written from uint8, uint16 or bool images, not {array.dtype} {array.shape}")
    if channels > 1:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR if channels == 3 else cv2.COLOR_RGBA2BGRA)
    return cv2.imencode(".png", array)[1].tobytes()


def data_uri(content: bytes, kind: str) -> str:
    """Bytes of a media type as a URI that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _decode_png_normals(path: Path, image: np.ndarray) -> np.ndarray:
    """Normals (H, W, 3) float32 of a PNG's values; black becomes zero."""
    if image.ndim != 3:
        raise SceneError(f"{path}: is a grey image: normals need three channels, export them as RGB")
    image = image[..., :3]
    normals = image.astype(np.float32) * np.float32(2 / _top(path, image)) - np.float32(1)
    normals[~image.any(axis=2)] = 0
    return normals


def _read_image(path: Path) -> np.ndarray:
    """Decode (H, W), (H, W, 3) RGB or (H, W, 4) RGBA of the file's own depth."""
    encoded = _read_bytes(path)
    image = None
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as picture:
            _check_pixels(path, *picture.size)
            if picture.format == "JPEG":
                return np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
            # libpng prints to stderr what it dislikes; a PNG whose checksums are wrong is turned away before that.
            picture.verify()
        # Pillow would cut 16 bits of colour to 8.
        image = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except SceneError:
        raise
    except Image.DecompressionBombError as error:
        raise SceneError(f"{path}: says that it is too large ({reason(error)}): export it again") from error
    except Exception as error:  # Pillow's parsers raise whatever they meet
        raise SceneError(f"{path}: is no image that can be read, or is cut short: export it again") from error
    if image is None:
        raise SceneError(f"{path}: is no image that can be read: export it again")
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return image


def _check_pixels(path: Path, width: int, height: int) -> None:
    """What a header says, before memory is set aside for it."""
    if not (0 < width and 0 < height and width * height <= _MAX_PIXELS):
        raise SceneError(
            f"{path}: says that it is {width}x{height} pixels, of {_MAX_PIXELS:,} at most: export it again, or smaller"
        )


def _top(path: Path, image: np.ndarray) -> int:
    """The largest value of the image's type."""
    if image.dtype not in (np.uint8, np.uint16):
        raise SceneError(f"{path}: holds {image.dtype} pixels: export it with 8 or 16 bits")
    return int(np.iinfo(image.dtype).max)


def _read_bytes(path: Path, count: int = -1) -> bytes:
    check_file(path)
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise SceneError(f"{path}: can't be read ({error.strerror}): check the file and its permissions") from error

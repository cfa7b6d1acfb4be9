# SPDX-License-Identifier: Apache-2.0
"""Channels of EXR files: of all parts, and those that hold normals among the layers of a renderer.

Renderers write many images into one file, as layers (NAME.X, NAME.Y, NAME.Z), in one part or, like Blender since 5.0, in
a part for each layer. Normals are in a layer that is named like it: Normal in Blender, nn or whatever the user called it in
Mitsuba.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import OpenEXR

from pmni_nerfstudio.data.files import MAX_PIXELS, check_pixels, read_bytes
from pmni_nerfstudio.errors import SceneError

_MAX_VALUES = 4 * MAX_PIXELS
"""Largest number of values in all channels of all parts: 2 GB in single precision."""
_MAGIC = b"\x76\x2f\x31\x01"
_TRIPLES = (("R", "G", "B"), ("X", "Y", "Z"))
_USUAL_LAYERS = ("normal", "nn")
"""Names of layers of which the normals are taken although other layers are named like normals, too."""
_NORMAL_LAYER = re.compile(r"nn?|.*normals?.*", re.I)


def read_channels(path: Path) -> dict[str, np.ndarray]:
    """Channels (H, W) float32 of all parts of an EXR file by their full names, all of the same size; A is left out.

    Raises:
        SceneError: the file can't be decoded, has channels of different sizes, or is cropped to a part of its display
            window.
    """
    # OpenEXR prints errors to stderr; files of other formats are rejected before that.
    if read_bytes(path, 4) != _MAGIC:
        raise SceneError(f"{path}: is not an EXR file; export it again")
    channels: dict[str, np.ndarray] = {}
    try:
        is_whole, is_rgb, values = True, False, 0
        with OpenEXR.File(str(path), header_only=True) as file:
            num_parts = len(file.parts)
            for part in range(num_parts):
                # Closing the file clears the header.
                header = file.header(part)
                low, high = (np.asarray(corner, dtype=np.int64) for corner in header["dataWindow"])
                is_whole &= np.array_equal(header["dataWindow"], header["displayWindow"])
                width, height = (int(side) for side in high - low + 1)
                check_pixels(path, width, height)
                values += width * height * len(header["channels"])
                is_rgb = {channel.name for channel in header["channels"]} == set("RGB") and num_parts == 1
        if values > _MAX_VALUES:
            raise SceneError(
                f"{path}: has {values:,} values in all channels, at most {_MAX_VALUES:,} are supported; export fewer layers"
            )
        with OpenEXR.File(str(path), separate_channels=not is_rgb) as file:
            if len(file.parts) != num_parts:  # the library leaves out parts that it can't decode
                raise ValueError("damaged part")
            if is_rgb:  # without copies of the channels
                pixels = file.channels()["RGB"].pixels.astype(np.float32, copy=False)
                channels = {name: pixels[..., place] for place, name in enumerate("RGB")}
            for number, part in enumerate(() if is_rgb else file.parts):
                for name, channel in file.channels(number).items():
                    # Other programs than Blender name only the part, and not the channels, by the layer.
                    layer = f"{part.name()}." if len(file.parts) > 1 and "." not in name else ""
                    if name != "A":
                        channels[layer + name] = channel.pixels.astype(np.float32, copy=False)
        if not channels or len({pixels.shape for pixels in channels.values()}) > 1:
            raise ValueError("no channels, or channels of different sizes")
    except SceneError:
        raise
    except Exception as error:  # the binding raises errors of many types
        # The library's own message does not help: a truncated file "has 0 parts".
        raise SceneError(f"{path}: is truncated or damaged; export the EXR file again") from error
    if not is_whole:
        raise SceneError(f"{path}: is cropped (data window and display window differ); export the whole image")
    return channels


def interleaved(channels: list[np.ndarray]) -> np.ndarray:
    """Image (H, W, C) of channels (H, W); the image itself, without a copy, if they are its channels in their order."""
    image = channels[0].base
    shape = (*channels[0].shape, len(channels))
    if isinstance(image, np.ndarray) and image.shape == shape and image.flags.c_contiguous:
        if all(np.may_share_memory(image[..., i], c) for i, c in enumerate(channels)):
            return image
    image = np.empty(shape, dtype=channels[0].dtype)
    for place in range(len(channels)):
        image[..., place] = channels[place]
        channels[place] = channels[place][:0]  # freed at once
    return image


def vector_channels(path: Path, names: Collection[str]) -> tuple[str, str, str]:
    """The three channels of an image that has no others: R, G, B or X, Y, Z.

    Raises:
        SceneError: there are others.
    """
    for triple in _TRIPLES:
        if set(triple) == set(names):
            return triple
    raise SceneError(f"{path}: has the channels {_listed(names)}; export R, G, B only")


def normal_channels(path: Path, names: Collection[str]) -> tuple[str, str, str]:
    """The three channels that hold normals: those of an image without layers, or of the layer that is named like normals.

    Args:
        path: file, for messages.
        names: all channels.

    Raises:
        SceneError: no layer is named like normals, or several are.
    """
    if any(set(triple) == set(names) for triple in _TRIPLES):
        return vector_channels(path, names)
    layers: dict[str, tuple[str, str, str]] = {}
    for layer in {name.rpartition(".")[0] for name in names if "." in name}:
        for triple in _TRIPLES:
            full = tuple(f"{layer}.{channel}" for channel in triple)
            if set(full) <= set(names) and _NORMAL_LAYER.fullmatch(layer.rpartition(".")[2]):
                layers[layer] = (full[0], full[1], full[2])
    usual = [layer for layer in layers if layer.rpartition(".")[2].lower() in _USUAL_LAYERS]
    chosen = usual or list(layers)
    if len(chosen) == 1:
        return layers[chosen[0]]
    if chosen:
        raise SceneError(f"{path}: has several layers of normals ({_listed(chosen)}); export only one of them")
    raise SceneError(
        f"{path}: has the channels {_listed(names)}; export R, G, B only, or a layer of normals with X, Y, Z (such as Normal.X)"
    )


def _listed(names: Collection[str]) -> str:
    """Names in ASCII, separated by commas, at most twelve."""
    words = [ascii(name)[1:-1] for name in sorted(names)]
    return ", ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "")

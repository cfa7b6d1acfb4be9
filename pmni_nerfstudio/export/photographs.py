# SPDX-License-Identifier: Apache-2.0
"""The colors of a scene's views in linear light: photographs in image/, or albedo maps in albedo/, with confidence/.

Encoding: 8-bit images are sRGB. Images of 16 bits and of floats are linear, with 1 (or the largest value) as white; so are
albedo maps of any kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Shaped

from pmni_nerfstudio.data import images
from pmni_nerfstudio.data.files import entries
from pmni_nerfstudio.data.scene import IMAGES, Scene
from pmni_nerfstudio.errors import SceneError

Encoding = Literal["auto", "srgb", "linear"]
ALBEDO, CONFIDENCE = "albedo", "confidence"
"""Folders that `pmni photometric` writes into a scene."""
_SUFFIXES = (*images.IMAGE_SUFFIXES, ".tif", ".tiff")
_WHITE = 0.98
"""Share of the largest value above which a pixel is clipped."""


class Photograph(NamedTuple):
    """The colors that a view sees, and its camera."""

    image: Float[np.ndarray, "H W 3"]
    """RGB in linear light."""
    weight: Float[np.ndarray, "h w"]
    """Confidence from 0 to 1 in the same field of view; zero off the object and where the view says nothing."""
    K: Float[np.ndarray, "3 3"]
    """Intrinsics in pixels of `weight`, pixel centers at integers."""
    c2w: Float[np.ndarray, "4 4"]
    """Pose in the world of the mesh, OpenCV axes."""
    clipped: float = np.inf
    """Value from which on pixels are saturated."""


@dataclass(frozen=True)
class ColorFiles:
    """Files with the colors of a scene's views."""

    folder: str
    """image or albedo."""
    files: Sequence[Path]
    """One for each view."""
    confidence: Sequence[Path] | None
    """Confidence map of each view; None: there are none."""


def find_colors(scene: Scene, wanted: Literal["auto", "image", "albedo"] = "auto") -> ColorFiles | None:
    """Files with the colors of all views; None if there are none.

    Args:
        scene: scene.
        wanted: folder to take them from; auto: albedo/ if it has all views, else image/.

    Raises:
        SceneError: the folder that is asked for lacks a view.
    """
    albedo = _files_of_all_views(scene, ALBEDO)
    if wanted != "image" and albedo is not None:
        return ColorFiles(ALBEDO, albedo, _files_of_all_views(scene, CONFIDENCE))
    photographs = _files_of_all_views(scene, IMAGES)
    if wanted != "albedo" and photographs is not None:
        # `pmni photometric` writes pictures of the albedo into image/.
        confidence = _files_of_all_views(scene, CONFIDENCE) if albedo is not None else None
        return ColorFiles(IMAGES, photographs, confidence)
    if wanted == "auto":
        return None
    folder = ALBEDO if wanted == "albedo" else IMAGES
    raise SceneError(f"{scene.root / folder}: is missing or lacks a view; put an image of each view there")


def read_photographs(
    scene: Scene, c2w: Float[np.ndarray, "n 4 4"], colors: ColorFiles, encoding: Encoding = "auto"
) -> Iterator[Photograph]:
    """Read the colors of a scene's views one at a time, because all of them may not fit into memory.

    Photographs may have another resolution than the maps but must show the same field of view.

    Args:
        scene: scene.
        c2w: poses of all views in the world of the mesh, OpenCV axes.
        colors: files to read.
        encoding: of photographs; auto: sRGB with 8 bits, else linear. Albedo maps are linear.

    Raises:
        SceneError: a file is missing, cannot be read, or has another aspect ratio than the maps.
    """
    for i, file in enumerate(colors.files):
        stored = images.read_photograph(file)
        _check_aspect(file, stored, scene)
        kind = "linear" if colors.folder == ALBEDO else encoding
        image, clipped = _linear_light(file, stored, kind)
        # An albedo is known where the normal is.
        mask = scene.masks[i] & scene.normals[i].any(axis=-1) if colors.folder == ALBEDO else scene.masks[i]
        weight = mask.astype(np.float32)
        if colors.confidence is not None:
            weight *= _confidence(colors.confidence[i], scene)
        yield Photograph(image, weight, scene.K[i], c2w[i], np.inf if colors.folder == ALBEDO else clipped)


def srgb_from_linear(values: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Encode linear values from 0 to 1 by the transfer function of sRGB (IEC 61966-2-1)."""
    values = np.clip(values, 0, 1)
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)


def linear_from_srgb(values: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Decode values from 0 to 1; see `srgb_from_linear`."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _files_of_all_views(scene: Scene, folder: str) -> list[Path] | None:
    if not (scene.root / folder).is_dir():
        return None
    files = {path.stem: path for path in entries(scene.root / folder) if path.suffix.lower() in _SUFFIXES}
    return [files[name] for name in scene.names] if all(name in files for name in scene.names) else None


def _check_aspect(file: Path, image: np.ndarray, scene: Scene) -> None:
    height, width = image.shape[:2]
    if abs(width / scene.width * scene.height / height - 1) > 0.01:
        raise SceneError(
            f"{file}: {width}x{height} has another aspect ratio than the maps, {scene.width}x{scene.height}; "
            "crop it to the field of view of the maps"
        )


def _linear_light(
    file: Path, stored: Shaped[np.ndarray, "H W *c"], encoding: Encoding
) -> tuple[Float[np.ndarray, "H W 3"], float]:
    """An image as RGB in linear light, and the value from which on it is saturated."""
    is_float = stored.dtype.kind == "f"
    if is_float and not np.isfinite(stored).all():
        raise SceneError(f"{file}: has values that are not finite; export it again")
    top = 1 if is_float else int(np.iinfo(stored.dtype).max)
    if encoding == "srgb" or (encoding == "auto" and stored.dtype == np.uint8):
        if is_float:
            image = linear_from_srgb(stored.clip(0, 1)).astype(np.float32)
        else:
            image = linear_from_srgb(np.arange(top + 1) / top).astype(np.float32)[stored]
        clipped = float(linear_from_srgb(np.array(_WHITE)))
    else:
        image, clipped = stored.astype(np.float32) / np.float32(top), _WHITE
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    return np.ascontiguousarray(image), np.inf if is_float else clipped


def _confidence(file: Path, scene: Scene) -> Float[np.ndarray, "h w"]:
    """Confidence from 0 to 1 at the size of the maps."""
    stored = images.read_photograph(file)
    _check_aspect(file, stored, scene)
    if stored.ndim == 3:
        stored = stored.mean(axis=2)
    values = stored.astype(np.float32) / np.float32(1 if stored.dtype.kind == "f" else np.iinfo(stored.dtype).max)
    if values.shape != (scene.height, scene.width):
        values = cv2.resize(values, (scene.width, scene.height), interpolation=cv2.INTER_AREA)
    return values.clip(0, 1)

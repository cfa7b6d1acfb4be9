# SPDX-License-Identifier: Apache-2.0
"""Axes, range and layout of the normal maps that known estimators and renderers write.

The conventions were read from the tools' own code; docs/formats.md names file and commit for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.importers.source import Axes, Decode, Source

_COLORS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
"""Suffixes of files that hold normals as colors."""


@dataclass(frozen=True)
class NormalTool:
    """Axes and encoding of the normals that a tool stores."""

    axes: Axes | None
    """Axes of the decoded normals; None if the tool does not define them, so that they are estimated from the maps."""
    decode: Decode | None = None
    """Change of the normals as they are read from the file; None if there is none."""
    axes_of_floats: Axes | None = None
    """Axes of files that hold floats, if they differ from those of colors."""

    def axes_of(self, path: Path) -> Axes | None:
        """Axes of one file."""
        is_color = path.suffix.lower() in _COLORS
        return self.axes if is_color or self.axes_of_floats is None else self.axes_of_floats


def _each(change: Callable[[np.ndarray, bool], np.ndarray]) -> Decode:
    """Decoding by a function of the values and of whether the file holds colors; pixels without a normal stay zero."""

    def decode(path: Path, stored: np.ndarray) -> np.ndarray:
        empty = ~stored.any(axis=-1, keepdims=True)
        return np.where(empty, np.float32(0), change(stored, path.suffix.lower() in _COLORS)).astype(np.float32)

    return decode


def _x_to_the_right(stored: np.ndarray, is_color: bool) -> np.ndarray:
    """Normals with x to the left."""
    return stored * np.array([-1, 1, 1], np.float32)


def _from_unit_range(stored: np.ndarray, is_color: bool) -> np.ndarray:
    """Floats from 0 to 1 as colors; floats from -1 to 1 are kept."""
    return stored if is_color or np.nanmin(stored) < 0 or np.nanmax(stored) > 1 else 2 * stored - 1


def _channels_reversed_in_colors(stored: np.ndarray, is_color: bool) -> np.ndarray:
    """Colors whose red is z and whose blue is x."""
    return stored[..., ::-1] if is_color else stored


def _white_is_empty(stored: np.ndarray, is_color: bool) -> np.ndarray:
    """Colors with a white background."""
    white = is_color & (stored > 0.99).all(axis=-1, keepdims=True)
    return np.where(white, np.float32(0), stored)


def _meshroom(path: Path, stored: np.ndarray) -> np.ndarray:
    """Normal maps of AliceVision's photometric stereo; the blue of its PNG files is z from 0 to 1.

    Raises:
        SceneError: The file is in world axes, in which some releases store vectors that are no rotated normals.
    """
    if path.stem.endswith("_normals_w"):
        camera = path.name.replace("_normals_w", "_normals")
        raise SceneError(
            f"{path}: holds normals in Meshroom's world axes, which some of its releases compute wrongly; give {camera}"
        )
    if path.suffix.lower() not in _COLORS:
        return stored
    decoded = stored * np.array([1, 1, 0.5], np.float32) + np.array([0, 0, 0.5], np.float32)
    return np.where(stored.any(axis=-1, keepdims=True), decoded, np.float32(0)).astype(np.float32)


NORMAL_TOOLS: dict[str, NormalTool] = {
    "blender": NormalTool("world"),
    "dsine": NormalTool("camera", _each(_x_to_the_right)),
    "geowizard": NormalTool("camera", _each(_x_to_the_right)),
    "lino-unips": NormalTool("camera"),
    "marigold": NormalTool("camera"),
    "meshroom": NormalTool("camera", _meshroom, axes_of_floats="opencv"),
    "metric3d": NormalTool("opencv", _each(_channels_reversed_in_colors)),
    "mitsuba": NormalTool("world"),
    "moge": NormalTool("camera", axes_of_floats="opencv"),
    "omnidata": NormalTool("opencv", _each(_from_unit_range)),
    "sdm-unips": NormalTool("camera", _each(_from_unit_range)),
    "stablenormal": NormalTool(None, _each(_white_is_empty)),
    "uni-ms-ps": NormalTool("camera"),
}
"""Known tools by the names of `pmni prepare --normals-from`."""


def with_normals_from(source: Source, tool: str | None) -> Source:
    """The source with the normals of a known tool.

    Args:
        source: source as its format was read.
        tool: name in `NORMAL_TOOLS`; None to leave the source as it is.

    Raises:
        PmniError: The maps of some views hold colors and others floats, of which the tool stores different axes.
    """
    if tool is None:
        return source
    known = NORMAL_TOOLS[tool]
    axes = {known.axes_of(frame.normals) for frame in source.frames}
    if len(axes) > 1:
        raise PmniError(
            f"{source.frames[0].normals.parent}: holds normal maps of different file types, of which {tool} stores "
            "different axes; keep one type"
        )
    frames = tuple(replace(frame, decode=known.decode) for frame in source.frames)
    return replace(source, frames=frames, axes=axes.pop() if axes else None)

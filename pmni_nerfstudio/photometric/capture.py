# SPDX-License-Identifier: Apache-2.0
"""A photometric stereo capture: images, lights, mask and camera of each view, and tables of numbers in text files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.data.files import check_file, reason
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.geometry.transforms import OPENCV_FROM_DIRECTX, OPENCV_FROM_STORED
from pmni_nerfstudio.photometric.lights import Lights

LIGHT_AXES = {
    "camera": OPENCV_FROM_STORED,
    "opencv": np.eye(3),
    "directx": OPENCV_FROM_DIRECTX,
}
"""Matrices (3, 3) from the axes of stored light directions and positions to OpenCV camera axes.

camera: x right, y up, z towards the viewer (DiLiGenT, RTI). opencv: x right, y down, z forward. directx: x right, y down,
z towards the viewer.
"""
MAX_NUMBER = 1e9
"""Largest number in a file: larger ones are damage, and overflow in single precision."""
MIN_IMAGES = 4
"""Fewest images of a view: one more than the unknowns of a pixel, so that there are residuals."""


@dataclass(frozen=True, eq=False)
class CaptureView:
    """One view; its images are read on demand."""

    name: str
    """Unique name, not a path."""
    images: tuple[Path, ...]
    """One for each light."""
    lights: Lights
    mask: Path
    """White on the object."""
    K: Float[np.ndarray, "3 3"] | None = None
    """Intrinsics in pixels of the images, pixel centers at integers; None if unknown."""
    c2w: Float[np.ndarray, "4 4"] | None = None
    """Rigid pose in the capture's world, OpenCV axes; None if unknown."""
    distance: float | None = None
    """Mean z depth of the object, in the units of near lights' positions."""


@dataclass(frozen=True, eq=False)
class Capture:
    """Views in natural order; either all have a pose or none has."""

    description: str
    """Format in a few words for the user."""
    views: tuple[CaptureView, ...]
    axes: str
    """Axes of the lights in the files, a key of LIGHT_AXES."""
    cameras: Path | None = None
    """cameras_sphere.npz that holds the cameras instead of the views."""
    mesh: Path | None = None
    """Ground-truth mesh in the world of the poses."""
    saturation: float | None = None
    """Image value, as stored, from which on pixels are clipped; None: the largest of the files' type."""


@dataclass(frozen=True)
class Layout:
    """A layout of files that can be read."""

    recognize: Callable[[Path], bool]
    """Whether a file or folder has this layout, judged by the names of its files."""
    read: Callable[[Path, str | None], Capture]
    """Read it, with the axes of the lights (a key of LIGHT_AXES; None: those that the layout defines)."""


def distant_lights(path: Path, directions: np.ndarray, intensities: np.ndarray | None, axes: str, count: int) -> Lights:
    """Distant lights from the numbers of a file.

    Args:
        path: file of the directions, for messages.
        directions: (n, 3), of any length but zero.
        intensities: (n, 3) or None if all are equal.
        axes: key of LIGHT_AXES.
        count: number of images.

    Raises:
        SceneError: Numbers are missing, too many, or no directions.
    """
    check_count(path, len(directions), count)
    length = np.linalg.norm(directions, axis=1)
    if not (np.isfinite(length) & (length > 1e-6)).all():
        line = int(np.flatnonzero(~(np.isfinite(length) & (length > 1e-6)))[0]) + 1
        raise SceneError(f"{path}: light {line} has no direction; give three finite numbers, not all zero")
    vectors = directions / length[:, None] @ LIGHT_AXES[axes].T
    return Lights(vectors, np.ones((count, 3)) if intensities is None else intensities)


def check_count(path: Path, lights: int, images: int) -> None:
    """Raise SceneError unless a view has as many lights as images, and enough of them."""
    if lights != images:
        raise SceneError(
            f"{path}: has {lights} lights for {images} images; give one light for each image, in their order"
        )
    if images < MIN_IMAGES:
        raise SceneError(f"{path}: has {images} images; photometric stereo needs at least {MIN_IMAGES}")


def read_table(path: Path, columns: tuple[int, ...]) -> np.ndarray:
    """Numbers of a text file (n, c), separated by blanks or commas; c is one of `columns`.

    Raises:
        SceneError: The file is missing, or holds something else.
    """
    check_file(path)
    try:
        text = path.read_text(encoding="utf-8")
        rows = [
            line.replace(",", " ").split() for line in text.splitlines() if line.strip() and not line.startswith("#")
        ]
        table = number_table(rows)
    except (OSError, ValueError) as error:  # ValueError: no number, or rows of different lengths
        raise SceneError(f"{path}: can't be read as numbers ({reason(error)}); give one line for each image") from error
    if table.ndim != 2 or table.shape[1] not in columns or not (np.abs(table) <= MAX_NUMBER).all():
        words = " or ".join(str(column) for column in columns)
        raise SceneError(f"{path}: holds an array of shape {table.shape}; give {words} finite numbers in each line")
    return table


def number_table(rows: Sequence[Sequence[str]]) -> np.ndarray:
    """Numbers of words (n, c).

    Raises:
        ValueError: A word is no number, or lines have different lengths.
    """
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise ValueError(f"lines with {min(lengths)} and with {max(lengths)} numbers")
    return np.array([[float(word) for word in row] for row in rows])


def check_intensities(path: Path, table: np.ndarray) -> np.ndarray:
    """Intensities (n, 3) from a table with one or three columns.

    Raises:
        SceneError: An intensity is not positive.
    """
    if not (table > 0).all():
        line = int(np.flatnonzero((table <= 0).any(axis=1))[0]) + 1
        raise SceneError(f"{path}: the intensity of light {line} is not positive; correct it or remove its image")
    return np.repeat(table, 3, axis=1) if table.shape[1] == 1 else table


def recognize_axes(axes: str | None) -> str:
    """Axes of lights, by default those of DiLiGenT.

    Raises:
        PmniError: The name is unknown.
    """
    if axes is not None and axes not in LIGHT_AXES:
        raise PmniError(f"axes: {axes} are unknown; give one of {', '.join(LIGHT_AXES)}")
    return axes or "camera"

# SPDX-License-Identifier: Apache-2.0
"""Common representation of an imported data set: the files, camera and pose of each view, and the object's sphere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

Axes = Literal["camera", "opencv", "directx", "world"]
"""Axes of stored normals.

camera: x right, y up, z towards the viewer. opencv: x right, y down, z forward. directx: x right, y down, z towards the
viewer. world: the axes of the source's world.
"""

Decode = Callable[[Path, np.ndarray], np.ndarray]
"""Change of the normals (H, W, 3) float32 that were read from a file, zero where there is none."""


@dataclass(frozen=True)
class ImportOptions:
    """Information from the user that a source's files lack."""

    normals: str | None = None
    """Normal maps to read where there are several: the name of a folder, or of a method of DiLiGenT-MV."""
    focal: float | None = None
    """Focal length in pixels of the normal maps, for sources without cameras."""
    fov: float | None = None
    """Horizontal field of view in degrees, as an alternative to `focal`."""
    axes: Axes | None = None
    """Axes of the stored normals; None: those of the format, or an estimate from the maps."""


@dataclass(frozen=True)
class Lens:
    """Lens distortion in OpenCV's models."""

    coefficients: tuple[float, ...]
    """k1 k2 p1 p2 k3 k4 k5 k6, or the fisheye model's k1 k2 k3 k4; missing ones are zero."""
    is_fisheye: bool = False

    @property
    def is_none(self) -> bool:
        """Whether the image is a perspective one; a fisheye image is not, even if all its coefficients are zero."""
        return not self.is_fisheye and not any(self.coefficients)


@dataclass(frozen=True, eq=False)
class Frame:
    """One view of a source; its maps are read on demand."""

    name: str
    """Unique name of the view, not a path."""
    normals: Path
    K: np.ndarray
    """Intrinsics (3, 3) in pixels, pixel centers at integers."""
    mask: Path | None = None
    """None: the object is where the normal map is not zero."""
    size: tuple[int, int] | None = None
    """Width and height of the image that K belongs to; None: of the normal map."""
    lens: Lens = Lens(())
    c2w: np.ndarray | None = None
    """Rigid camera-to-world pose (4, 4) in the source's world, OpenCV axes; None if unknown."""
    image: Path | None = None
    """Photograph, with the aspect ratio of the normal map."""
    valid: Path | None = None
    """Image that is white where normals count; None: wherever they are not zero."""
    unknown: Path | None = None
    """Image that is white where something else stands in front of the object; None if nothing does."""
    instance: Path | None = None
    """Label image: the number of the object at each pixel, 0 where there is none."""
    decode: Decode | None = None
    """Change of the normals after reading, before they are checked; None if there is none."""


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as its format's reader found it."""

    description: str
    """Format and camera file, in a few words for the user."""
    frames: tuple[Frame, ...]
    """Either all frames have a pose or none has."""
    axes: Axes | None
    """Axes of the normals; None if the format does not define them, so that they are estimated from the maps."""
    world_from_unit: np.ndarray | None = None
    """Similarity (4, 4) from the unit sphere to the source's world; None: fitted to the object."""
    mesh: Path | None = None
    """Ground truth mesh in the source's world."""
    warnings: tuple[str, ...] = ()
    """One line each."""


def _single_scene(folder: Path) -> dict[str, Path]:
    return {"": folder}


@dataclass(frozen=True)
class Format:
    """A format that can be imported."""

    recognize: Callable[[Path], bool]
    """Whether a folder has this format, judged quickly by the names of its files."""
    read: Callable[[Path, ImportOptions], Source]
    """Read a folder; raises PmniError with one line if its files are broken."""
    scenes: Callable[[Path], Mapping[str, Path]] = field(default=_single_scene)
    """Folders of a source's scenes by the subfolder of the output that each is written to; "" is the output itself."""

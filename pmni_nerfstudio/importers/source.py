# SPDX-License-Identifier: Apache-2.0
"""What a format's reader hands on: where each view's maps are, its camera, and what is known of the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

Axes = Literal["camera", "opencv", "directx", "world"]
"""Of stored normals: x right, y up, z to the viewer; x right, y down, z forward; x right, y down, z to the viewer; the
world's."""


@dataclass(frozen=True)
class Options:
    """What a user says of a source that its files don't."""

    normals: str | None = None
    """Which normal maps, where there are several: a folder's name, or DiLiGenT-MV's TIP19Li or PAMI16Park."""
    focal: float | None = None
    """Focal length in pixels of the maps, for sources without cameras."""
    fov: float | None = None
    """Horizontal field of view in degrees, in its place."""


@dataclass(frozen=True)
class Lens:
    """Distortion as OpenCV has it."""

    coefficients: tuple[float, ...]
    """k1 k2 p1 p2 k3 k4 k5 k6, or a fisheye's k1 k2 k3 k4."""
    is_fisheye: bool = False

    @property
    def is_none(self) -> bool:
        """Whether it changes nothing. A fisheye does without coefficients too."""
        return not self.is_fisheye and not any(self.coefficients)


@dataclass(frozen=True, eq=False)
class Frame:
    """One view of a source; its maps are read when they are needed."""

    name: str
    """Of the view, different from the others', no path."""
    normals: Path
    K: np.ndarray
    """(3, 3), pixel centres at integers."""
    mask: Path | None = None
    """None: where there are normals."""
    size: tuple[int, int] | None = None
    """Width and height of the image that K is of; None: of the normal map."""
    lens: Lens = Lens(())
    c2w: np.ndarray | None = None
    """(4, 4) rigid, camera to the data's world, OpenCV axes; None if unknown."""
    image: Path | None = None
    """A photograph of the size that K is of, or of the maps'."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A source, understood."""

    said: str
    """What it was recognised as, a few words for the user."""
    frames: tuple[Frame, ...]
    """All with poses, or all without."""
    axes: Axes | None
    """Of the normals; None if the format leaves them open: told from the maps then."""
    world_from_unit: np.ndarray | None = None
    """(4, 4) similarity to the data's world; None: made to fit the object."""
    mesh: Path | None = None
    """The true surface, in the data's world."""
    warnings: tuple[str, ...] = ()
    """One line each."""


def _whole(folder: Path) -> dict[str, Path]:
    return {"": folder}


@dataclass(frozen=True)
class Format:
    """A kind of source."""

    recognise: Callable[[Path], bool]
    """Whether a folder is of this kind; quick, from the names of its files."""
    read: Callable[[Path, Options], Prepared]
    """Raises PmniError with one line where the source is broken."""
    parts: Callable[[Path], Mapping[str, Path]] = field(default=_whole)
    """The scenes of a source and their names, which are subfolders of the output; "" is the output itself."""

# SPDX-License-Identifier: Apache-2.0
"""Result of `pmni sequence`, read from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.data.files import read_json_object
from pmni_nerfstudio.errors import PmniError

SEQUENCE_FILE = "sequence.json"


@dataclass(frozen=True)
class StoredFrame:
    """A frame of the result."""

    name: str
    verdict: str
    mesh: Path


@dataclass(frozen=True, eq=False)
class StoredSequence:
    """Frames that have a mesh, in order."""

    frames: tuple[StoredFrame, ...]
    c2w: Float[np.ndarray, "n 4 4"]
    """Poses of the static cameras, or of the first frame's, in the world of the meshes, OpenCV axes."""


def read_sequence(folder: Path) -> StoredSequence:
    """Read sequence.json; meshes are not read.

    Raises:
        PmniError: the file is missing or invalid, or no frame has a mesh.
    """
    path, advice = folder / SEQUENCE_FILE, "write it again with pmni sequence"
    record = read_json_object(path, advice)
    try:
        entries = [entry for entry in record["frames"] if entry["error"] is None]
        frames = tuple(
            StoredFrame(str(entry["frame"]), str(entry["verdict"]), folder / str(entry["mesh"])) for entry in entries
        )
        if not frames:
            raise PmniError(f"{path}: no frame has a mesh; see the reasons in this file")
        c2w = np.array(record["c2w"] if "c2w" in record else entries[0]["c2w"], dtype=np.float64).reshape(-1, 4, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise PmniError(f"{path}: does not hold a sequence ({error!r}); {advice}") from error
    return StoredSequence(frames, c2w)

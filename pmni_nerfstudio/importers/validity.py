# SPDX-License-Identifier: Apache-2.0
"""Where the normals of a source count: images in mask_valid/, in any format that `pmni prepare` reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.importers.file_matching import find_valid, match
from pmni_nerfstudio.importers.source import Frame, Source


def with_validity(folder: Path, source: Source) -> Source:
    """The source with the images of `folder` that tell where normals count, if it has any.

    They are named like the views or their normal maps.

    Raises:
        PmniError: There are such images, but none of a view.
    """
    files = find_valid(folder)
    if not files:
        return source
    return replace(source, frames=tuple(_with_validity(folder, frame, files) for frame in source.frames))


def _with_validity(folder: Path, frame: Frame, files: dict[str, Path]) -> Frame:
    for name in (frame.name, frame.normals.stem):
        if (file := match(name, files)) is not None:
            return replace(frame, valid=file)
    place = next(iter(files.values())).parent
    raise PmniError(f"{folder}: {place} has no image of the view {frame.name}; add it, white where normals count")

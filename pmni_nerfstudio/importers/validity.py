# SPDX-License-Identifier: Apache-2.0
"""Validity masks of a source, which tell where normals were measured: mask_valid/ in any format that `pmni prepare` reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.importers.file_matching import match_any, plain_path
from pmni_nerfstudio.importers.map_folders import find_valid
from pmni_nerfstudio.importers.source import Source


def with_validity(folder: Path, source: Source) -> Source:
    """The source with the images of `folder` that tell where normals count, if it has any.

    They are named like the views or their normal maps.

    Raises:
        PmniError: There are such images, but none of a view.
    """
    found = find_valid(folder)
    if not found.files:
        return source
    names = [(_path_below(folder, frame.normals), frame.normals.stem, frame.name) for frame in source.frames]
    files = match_any(names, found.files)
    missing = [frame.name for frame, file in zip(source.frames, files) if file is None]
    if missing:
        place = next(iter(found.files.values())).parent
        raise PmniError(f"{folder}: {place} has no image of the view {missing[0]}; add it, white where normals count")
    frames = tuple(replace(frame, valid=file) for frame, file in zip(source.frames, files))
    return replace(source, frames=frames, warnings=(*source.warnings, *found.warnings))


def _path_below(folder: Path, file: Path) -> str:
    return plain_path(file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name)

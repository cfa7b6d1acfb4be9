# SPDX-License-Identifier: Apache-2.0
"""Folders of maps that are replaced as a whole: a run that stops halfway leaves what was there before."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_folders(folders: Sequence[Path], suffix: str) -> Iterator[list[Path]]:
    """Set folders aside, yield empty ones to fill, and put these in their places when the block ends.

    A scene with depth maps for some of its views is refused by its reader, so files that are each whole don't suffice.
    While the block runs the folders don't exist, which is how a scene without depth maps looks: files of a former run
    that no longer fit the scene can't keep it from being read. When the block raises, all is as it was. What a folder
    holds beside files of `suffix` stays.

    Args:
        folders: to replace; they need not exist.
        suffix: of the files that are replaced, with its dot.

    Raises:
        OSError: a folder can't be made, moved or filled.
    """
    places = [folder.resolve() for folder in folders]  # a link keeps pointing where it did
    mark = uuid.uuid4().hex[:12]
    asides = [place.with_name(f".{place.name}.old.{mark}") for place in places]
    fresh = [place.with_name(f".{place.name}.new.{mark}") for place in places]
    placed: list[Path] = []
    try:
        for place, aside, folder in zip(places, asides, fresh, strict=True):
            folder.mkdir(parents=True)
            if place.is_dir():
                place.rename(aside)
        yield fresh
        for place, aside, folder in zip(places, asides, fresh, strict=True):
            if aside.is_dir():
                for path in aside.iterdir():
                    if path.suffix.lower() != suffix:
                        _copy(path, folder / path.name)
            folder.rename(place)
            placed.append(place)
    except BaseException:
        for place in placed:
            shutil.rmtree(place)
        for place, aside, folder in zip(places, asides, fresh, strict=True):
            shutil.rmtree(folder, ignore_errors=True)
            if aside.is_dir():
                aside.rename(place)
        raise
    for aside in asides:
        shutil.rmtree(aside, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)

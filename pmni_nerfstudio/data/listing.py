# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder belong to which view."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pmni_nerfstudio.data.files import check_file, entries
from pmni_nerfstudio.errors import SceneError


def list_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files of the folder by their stem; hidden files and those of other kinds are none of ours.

    Raises:
        SceneError: there is no such folder, it holds no such file, two files for one view, or what is no file.
    """
    if not folder.is_dir():
        raise SceneError(f"{folder}: there is no such folder: a scene needs it")
    files: dict[str, Path] = {}
    for path in entries(folder):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            raise SceneError(f"{folder}: holds both {files[path.stem].name} and {path.name}: keep one")
        check_file(path)
        files[path.stem] = path
    if not files:
        raise SceneError(f"{folder}: holds no file of the kinds {', '.join(suffixes)}: a scene needs one for each view")
    return files


def files_in_order(names: Sequence[str], files: dict[str, Path], folder: Path, other: Path) -> tuple[Path, ...]:
    """Files of these views, out of those that `list_files` found in the folder.

    Raises:
        SceneError: the folder lacks a view that the `other` folder has.
    """
    missing = [name for name in names if name not in files]
    if missing:
        suffix = next(iter(files.values())).suffix
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise SceneError(
            f"{folder / (missing[0] + suffix)}: is missing{more}, though {other} has that view: "
            "add it, or take the view out"
        )
    return tuple(files[name] for name in names)


def natural_key(name: str) -> tuple:
    """Sort key by which 2 comes before 10; names that differ in zeros alone keep a fixed order."""
    parts: Iterable[str] = re.split(r"(\d+)", name)
    return (*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (-2, name))

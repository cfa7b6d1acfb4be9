# SPDX-License-Identifier: Apache-2.0
"""Assignment of the files in a folder to views."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pmni_nerfstudio.data.files import check_file, entries
from pmni_nerfstudio.errors import SceneError


def list_files(folder: Path, suffixes: tuple[str, ...], others: tuple[str, ...] = ()) -> dict[str, Path]:
    """Files of a folder by their stem, without hidden files and files of other types.

    Args:
        folder: folder to list.
        suffixes: suffixes of the files, in lower case and with the dot.
        others: suffixes that count if there are no files of the first ones.

    Raises:
        SceneError: the folder is missing, contains no such file, two files for one view, or something that is not a file.
    """
    if not folder.is_dir():
        raise SceneError(f"{folder}: no such folder; a scene needs it")
    files: dict[str, Path] = {}
    for path in with_suffixes(entries(folder), suffixes, others):
        if path.stem in files:
            raise SceneError(f"{folder}: contains both {files[path.stem].name} and {path.name}; keep one of them")
        check_file(path)
        files[path.stem] = path
    if not files:
        raise SceneError(f"{folder}: contains no {', '.join(suffixes)} file; a scene needs one for each view")
    return files


def with_suffixes(paths: Sequence[Path], suffixes: tuple[str, ...], others: tuple[str, ...]) -> list[Path]:
    """Paths with one of the suffixes or, if there are none, with one of the others; hidden files do not count."""
    visible = [path for path in paths if not path.name.startswith(".")]
    usual = [path for path in visible if path.suffix.lower() in suffixes]
    return usual or [path for path in visible if path.suffix.lower() in others]


def files_in_order(names: Sequence[str], files: dict[str, Path], folder: Path, other: Path) -> tuple[Path, ...]:
    """Files of the given views.

    Args:
        names: names of the views.
        files: files by view, as returned by `list_files`.
        folder: folder of these files, for messages.
        other: folder that contains files of all views, for messages.

    Raises:
        SceneError: the file of a view is missing.
    """
    missing = [name for name in names if name not in files]
    if missing:
        suffix = next(iter(files.values())).suffix
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise SceneError(
            f"{folder / (missing[0] + suffix)}: is missing{more} although {other} has this view; "
            "add the file, or remove the view from all folders"
        )
    return tuple(files[name] for name in names)


def natural_key(name: str) -> tuple:
    """Sort key for natural order, in which 2 comes before 10; names that differ in leading zeros only have a fixed order."""
    parts: Iterable[str] = re.split(r"(\d+)", name)
    return (*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (-2, name))

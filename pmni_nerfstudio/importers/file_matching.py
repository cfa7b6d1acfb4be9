# SPDX-License-Identifier: Apache-2.0
"""Matching of files to views by name: the same file is never given to two views.

Names agree if their paths do, or else if their last parts do and no other view or file has that last part; upper and
lower case, leading zeros, suffixes of images and words such as "normal" count only if nothing else tells names apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

IMAGE_FILE_SUFFIXES = (
    *(
        ".png",
        ".jpg",
        ".jpeg",
        ".tif",
        ".tiff",
        ".bmp",
        ".webp",
        ".exr",
        ".hdr",
        ".pfm",
        ".npy",
        ".npz",
        ".mat",
        ".jp2",
    ),
    *(".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".rw2", ".orf", ".tga", ".ppm", ".pgm", ".gif"),
)
"""Suffixes that are not part of a view's name; "scan.0001" has none."""
_WORDS = r"(normals?(_?maps?)?|masks?|silhouettes?|images?|img|rgb|albedo)"


def plain_path(file: str) -> str:
    """Path of an image from a camera file, as written by any system, with slashes and without drive, "./" or suffix."""
    path = re.sub(r"^[A-Za-z]:", "", file.strip().replace("\\", "/"))
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return without_suffix("/".join(parts))


def without_suffix(name: str) -> str:
    """A name without the suffix of an image file; other dots belong to the name."""
    suffix = PurePosixPath(name).suffix if "." in name else ""
    return name[: -len(suffix)] if suffix.lower() in IMAGE_FILE_SUFFIXES and len(suffix) < len(name) else name


def match_files(names: Sequence[str], files: dict[str, Path]) -> list[Path | None]:
    """File of each view, or None.

    Args:
        names: names or paths of the views without suffix, as `plain_path` returns them.
        files: files by name or path without suffix.
    """
    found: list[Path | None] = [None] * len(names)
    left = dict(files)
    for key_of in (_path, _joined, _two_parts, _last, _last_case, _last_zeros, _last_words):
        _match_by(key_of, names, left, found)
    return found


def match_any(names: Sequence[Sequence[str]], files: dict[str, Path]) -> list[Path | None]:
    """File of each view by any of its names, in order of preference; all views have equally many names."""
    found: list[Path | None] = [None] * len(names)
    for alternatives in zip(*names):
        left = {name: path for name, path in files.items() if path not in found}
        found = [own or new for own, new in zip(found, match_files(alternatives, left))]
    return found


def view_names(paths: Sequence[str]) -> list[str]:
    """Names of views, without slashes, from their paths: the last parts if these differ, otherwise with their folders."""
    stems = [_last(path) for path in paths]
    if len(set(stems)) == len(stems) and all(stems):
        return stems
    joined = [_joined(path) for path in paths]
    return joined if len(set(joined)) == len(joined) and all(joined) else [f"{i:04d}" for i in range(len(paths))]


def _match_by(
    key_of: Callable[[str], str], names: Sequence[str], left: dict[str, Path], found: list[Path | None]
) -> None:
    """Give files to views without one, where the key of both is unique; those files are taken out of `left`."""
    views = Counter(key_of(name) for name, file in zip(names, found) if file is None)
    keys = Counter(map(key_of, left))
    by_key = {key_of(name): name for name in left}
    for i, name in enumerate(names):
        key = key_of(name)
        if found[i] is None and key and views[key] == 1 and keys[key] == 1:
            found[i] = left.pop(by_key[key])


def _path(name: str) -> str:
    return name


def _joined(name: str) -> str:
    return name.replace("/", "_")


def _two_parts(name: str) -> str:
    return "_".join(name.split("/")[-2:])


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _last_case(name: str) -> str:
    return without_suffix(_last(name)).casefold()


def _last_zeros(name: str) -> str:
    return re.sub(r"\d+", lambda digits: digits[0].lstrip("0") or "0", _last_case(name))


def _last_words(name: str) -> str:
    inner = re.sub(rf"^{_WORDS}[_\-. ]+|[_\-. ]+{_WORDS}$", "", _last_case(name))
    return _last_zeros(inner)

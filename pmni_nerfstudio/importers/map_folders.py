# SPDX-License-Identifier: Apache-2.0
"""Normal maps, masks and photographs in a folder, by view, in the common layouts.

Three layouts are known: one folder per kind (normal*/NN.exr, mask*/NN.png), with or without subfolders; one folder for
everything (NN_normal.png, NN_mask.png); and one folder per view (NN/normal.png, NN/mask.png).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pmni_nerfstudio.data.files import check_file, entries
from pmni_nerfstudio.data.images import MASK_SUFFIXES, NORMAL_SUFFIXES, OTHER_MASK_SUFFIXES, OTHER_NORMAL_SUFFIXES
from pmni_nerfstudio.data.listing import natural_key, with_suffixes
from pmni_nerfstudio.data.normals_folder import choose_normals_folder
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.importers.source import Axes

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg")
_OTHERS: dict[tuple[str, ...], tuple[str, ...]] = {
    NORMAL_SUFFIXES: OTHER_NORMAL_SUFFIXES,
    MASK_SUFFIXES: OTHER_MASK_SUFFIXES,
    PHOTO_SUFFIXES: (),
}
"""Suffixes that count in folders without files of the usual ones."""
_NORMAL_WORDS = ("normal",)
_MASK_WORDS = ("mask", "silhouette")
_VALID_WORDS = ("mask_valid",)
_UNKNOWN_WORDS = ("mask_unknown",)
_INSTANCE_WORDS = ("instance",)
_NO_MASK_WORDS = (*_VALID_WORDS, *_UNKNOWN_WORDS)
_IMAGE_WORDS = ("image", "img", "rgb", "photo", "color", "colour")


@dataclass(frozen=True)
class FoundMaps:
    """Files of one kind."""

    files: dict[str, Path]
    """In natural order; the key is the path below their folder without suffix, or the view's part of the name."""
    warnings: tuple[str, ...] = ()
    """Warnings that name files beside these that are not read, one line each."""

    @property
    def axes(self) -> Axes | None:
        """Axes of normal maps if the name of their folder defines them, otherwise None."""
        for folder in next(iter(self.files.values())).parents[:3]:
            if folder.name.lower().startswith("normal"):
                if "world" in folder.name.lower():
                    return "world"
                return "camera" if folder.name.lower().startswith("normal_camera_space") else None
        return None


def find_normals(root: Path, choice: str | None = None) -> FoundMaps:
    """Normal maps by view; empty if there are none.

    Args:
        root: folder of the source.
        choice: name of the folder of normal maps, if there are several.

    Raises:
        PmniError: There are several folders and no choice, or the chosen one is missing or empty.
    """
    if choice is not None:
        if not (root / choice).is_dir():
            raise PmniError(f"{root / choice}: there is no such folder of normal maps; check --normals")
        found = _in_folder(root / choice, NORMAL_SUFFIXES)
        if not found.files:
            raise PmniError(f"{root / choice}: holds no normal maps ({', '.join(NORMAL_SUFFIXES)}); check --normals")
        return found
    folders = _folders(root, _NORMAL_WORDS, NORMAL_SUFFIXES)
    if folders:
        name, warnings = choose_normals_folder(root, [folder.name for folder in folders])
        found = _in_folder(root / name, NORMAL_SUFFIXES)
        return FoundMaps(found.files, (*warnings, *found.warnings))
    return FoundMaps(_by_words(root, _NORMAL_WORDS, NORMAL_SUFFIXES))


def require_normals(root: Path, choice: str | None) -> FoundMaps:
    """Normal maps by view, at least one.

    Raises:
        PmniError: There are none, or `find_normals` fails.
    """
    found = find_normals(root, choice)
    if not found.files:
        others = Counter(
            path.suffix.lower() or path.name
            for folder in entries(root)
            if folder.is_dir() and folder.name.lower().startswith(_NORMAL_WORDS)
            for path in folder.rglob("*")
            if path.is_file()
        )
        if others:
            raise PmniError(
                f"{root}: its normal*/ holds no normal maps that can be read, only {', '.join(sorted(others)[:5])}; save "
                f"them as one of {', '.join(NORMAL_SUFFIXES)}"
            )
        raise PmniError(f"{root}: has no normal maps; put them into {root / 'normal'}, named like the views")
    return found


def find_masks(root: Path) -> FoundMaps:
    """Masks by view; empty if there are none."""
    return _find(root, _MASK_WORDS, MASK_SUFFIXES)


def find_valid(root: Path) -> FoundMaps:
    """Images that tell where normals count (mask_valid/NN.png and the like), by view; empty if there are none."""
    return _find(root, _VALID_WORDS, MASK_SUFFIXES)


def find_unknown(root: Path) -> FoundMaps:
    """Images that tell where something else stands in front, by view; empty if there are none."""
    return _find(root, _UNKNOWN_WORDS, MASK_SUFFIXES)


def find_instances(root: Path) -> FoundMaps:
    """Label images of several objects, by view; empty if there are none."""
    return _find(root, _INSTANCE_WORDS, MASK_SUFFIXES)


def find_images(root: Path) -> FoundMaps:
    """Photographs by view; empty if there are none."""
    return _find(root, _IMAGE_WORDS, PHOTO_SUFFIXES)


def _find(root: Path, words: Sequence[str], suffixes: tuple[str, ...]) -> FoundMaps:
    folders = _folders(root, words, suffixes)
    if not folders:
        return FoundMaps(_by_words(root, words, suffixes))
    exact = [folder for folder in folders if folder.name in (*words, *(f"{word}s" for word in words))]
    chosen = (exact or folders)[0]
    found = _in_folder(chosen, suffixes)
    others = [folder.name for folder in folders if folder != chosen]
    if not others or words == _IMAGE_WORDS:
        return found
    return FoundMaps(found.files, (f"{chosen}: is read, and not {', '.join(others)} beside it", *found.warnings))


def _folders(root: Path, words: Sequence[str], suffixes: tuple[str, ...]) -> list[Path]:
    """Folders whose names start with one of the words and that hold files with one of the suffixes."""
    return [path for path in entries(root) if path.is_dir() and _starts(path.name, words) and _files(path, suffixes)]


def _starts(name: str, words: Sequence[str]) -> bool:
    """Whether a name starts with one of the words; mask_valid and mask_unknown are not masks."""
    lower = name.lower()
    return lower.startswith(tuple(words)) and (words is not _MASK_WORDS or not lower.startswith(_NO_MASK_WORDS))


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of a folder or, if it holds none itself, of its subfolders."""

    others = _OTHERS[suffixes]
    direct = with_suffixes([path for path in entries(folder) if not path.is_dir()], suffixes, others)
    return direct or with_suffixes([path for path in sorted(folder.rglob("*")) if not path.is_dir()], suffixes, others)


def _in_folder(folder: Path, suffixes: tuple[str, ...]) -> FoundMaps:
    """Files of a folder, or of its subfolders, in natural order."""
    found: dict[str, Path] = {}
    files = _files(folder, suffixes)
    for path in files:
        key = path.relative_to(folder).with_name(path.stem).as_posix()
        if path.parent != folder and re.fullmatch(
            rf"({'|'.join((*_NORMAL_WORDS, *_MASK_WORDS))})[a-z]*", path.stem, re.I
        ):
            key = path.parent.relative_to(folder).as_posix()
        if key in found:
            raise PmniError(f"{path.parent}: holds both {found[key].name} and {path.name}; keep one of them")
        check_file(path)
        found[key] = path
    warnings = []
    previews = {path.suffix.lower() for path in entries(folder)} & set(_OTHERS[suffixes])
    if files and files[0].suffix.lower() in suffixes and previews:
        warnings.append(
            f"{folder}: its {', '.join(sorted(previews))} files are not read, because it holds {files[0].name}"
        )
    if files and files[0].parent == folder:
        below = [path for path in folder.rglob("*") if path.parent != folder and path.suffix.lower() in suffixes]
        if below:
            warnings.append(
                f"{folder}: its subfolders hold {len(below)} more files (first {below[0].relative_to(folder)}), which are "
                "not read; choose one with --normals FOLDER/SUBFOLDER, or move them"
            )
    return FoundMaps(dict(sorted(found.items(), key=lambda item: natural_key(item[0]))), tuple(warnings))


def _by_words(root: Path, words: Sequence[str], suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files of one folder with a word before or after the view's name, or of one folder per view, by view name."""
    alternatives = "|".join(words)
    pattern = re.compile(rf"(?:(?:{alternatives})[a-z]*[_\-. ]+(\w.*)|(.*?)[_\-. ]+(?:{alternatives})[\w\-. ]*)", re.I)
    found: dict[str, Path] = {}
    for path in entries(root):
        if words is _MASK_WORDS and any(word in path.stem.lower() for word in _NO_MASK_WORDS):
            continue
        if path.is_file() and path.suffix.lower() in suffixes and (parts := pattern.fullmatch(path.stem)):
            name = parts[1] or parts[2]
            if name in found:
                raise PmniError(f"{root}: holds both {found[name].name} and {path.name}; keep one of them")
            found[name] = path
    if len(found) > 1:
        return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))
    found = {}
    for folder in entries(root):
        if folder.is_dir() and not folder.name.startswith("."):
            inside = [
                path
                for path in entries(folder)
                if path.suffix.lower() in suffixes and _starts(path.stem, words) and path.is_file()
            ]
            if inside:
                found[folder.name.removesuffix(".data")] = inside[0]
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))

# SPDX-License-Identifier: Apache-2.0
"""Normal maps, masks and photographs of a folder and the view that each belongs to, by common ways of naming.

Three layouts are known: one folder per kind (normal*/NN.exr, mask*/NN.png), one folder for everything (NN_normal.png,
NN_mask.png), and one folder per view (NN/normal.png, NN/mask.png).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pmni_nerfstudio.data.files import check_file, entries
from pmni_nerfstudio.data.images import MASK_SUFFIXES, NORMAL_SUFFIXES
from pmni_nerfstudio.data.listing import natural_key
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.importers.source import Axes

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg")
_NORMAL_WORDS = ("normal",)
_MASK_WORDS = ("mask", "silhouette")
_VALID_WORDS = ("mask_valid",)
_IMAGE_WORDS = ("image", "img", "rgb", "photo", "color", "colour")


def find_normals(root: Path, choice: str | None = None) -> dict[str, Path]:
    """Normal maps by view name; empty if there are none.

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
        if not found:
            raise PmniError(f"{root / choice}: holds no normal maps ({', '.join(NORMAL_SUFFIXES)}); check --normals")
        return found
    folders = _folders(root, _NORMAL_WORDS, NORMAL_SUFFIXES)
    for name in ("normal", "normals", "normal_camera_space_GT", "normal_camera_space"):
        if len(folders) > 1 and name in (folder.name for folder in folders):
            folders = [root / name]
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise PmniError(f"{root}: has several folders of normal maps ({names}); choose one with --normals")
    if folders:
        return _in_folder(folders[0], NORMAL_SUFFIXES)
    return _by_words(root, _NORMAL_WORDS, NORMAL_SUFFIXES)


def find_masks(root: Path) -> dict[str, Path]:
    """Masks by view name; empty if there are none."""
    return _find(root, _MASK_WORDS, (*MASK_SUFFIXES, ".npy"))


def find_valid(root: Path) -> dict[str, Path]:
    """Images that tell where normals count (mask_valid/NN.png and the like), by view name; empty if there are none."""
    return _find(root, _VALID_WORDS, (*MASK_SUFFIXES, ".npy"))


def find_images(root: Path) -> dict[str, Path]:
    """Photographs by view name; empty if there are none."""
    return _find(root, _IMAGE_WORDS, PHOTO_SUFFIXES)


def axes_of(normals: dict[str, Path]) -> Axes | None:
    """Axes of normal maps if the name of their folder defines them, otherwise None."""
    folder = next(iter(normals.values())).parent.name.lower()
    if "world" in folder:
        return "world"
    return "camera" if folder.startswith("normal_camera_space") else None


def match(name: str, files: dict[str, Path]) -> Path | None:
    """File of a view: of the same name, or else of the only name that differs just by leading zeros of a number."""
    if name in files:
        return files[name]
    same = [key for key in files if _without_zeros(key) == _without_zeros(name)]
    return files[same[0]] if len(same) == 1 else None


def require_normals(root: Path, choice: str | None) -> dict[str, Path]:
    """Normal maps by view name, at least one.

    Raises:
        PmniError: There are none, or `find_normals` fails.
    """
    found = find_normals(root, choice)
    if not found:
        raise PmniError(f"{root}: has no normal maps; put them into {root / 'normal'}, named like the views")
    return found


def _find(root: Path, words: Sequence[str], suffixes: tuple[str, ...]) -> dict[str, Path]:
    folders = _folders(root, words, suffixes)
    if folders:
        exact = [folder for folder in folders if folder.name in (*words, *(f"{word}s" for word in words))]
        return _in_folder((exact or folders)[0], suffixes)
    return _by_words(root, words, suffixes)


def _folders(root: Path, words: Sequence[str], suffixes: tuple[str, ...]) -> list[Path]:
    """Folders whose names start with one of the words and that directly hold files with one of the suffixes."""
    return [
        path for path in entries(root) if path.is_dir() and _starts(path.name, words) and _in_folder(path, suffixes)
    ]


def _starts(name: str, words: Sequence[str]) -> bool:
    """Whether a name starts with one of the words; mask_valid is not a mask."""
    lower = name.lower()
    return lower.startswith(tuple(words)) and (words is _VALID_WORDS or not lower.startswith(_VALID_WORDS))


def _in_folder(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files of a folder by stem, in natural order."""
    found: dict[str, Path] = {}
    for path in entries(folder):
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or path.is_dir():
            continue
        if path.stem in found:
            raise PmniError(f"{folder}: holds both {found[path.stem].name} and {path.name}; keep one of them")
        check_file(path)
        found[path.stem] = path
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def _by_words(root: Path, words: Sequence[str], suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files of one folder with a word before or after the view's name, or of one folder per view, by view name."""
    alternatives = "|".join(words)
    pattern = re.compile(rf"(?:(?:{alternatives})[a-z]*[_\-. ]+(\w.*)|(.*?)[_\-. ]+(?:{alternatives})[\w\-. ]*)", re.I)
    found: dict[str, Path] = {}
    for path in entries(root):
        if words is _MASK_WORDS and any(word in path.stem.lower() for word in _VALID_WORDS):
            continue
        if path.is_file() and path.suffix.lower() in suffixes and (parts := pattern.fullmatch(path.stem)):
            found.setdefault(parts[1] or parts[2], path)
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


def _without_zeros(name: str) -> str:
    return re.sub(r"\d+", lambda digits: digits[0].lstrip("0") or "0", name)

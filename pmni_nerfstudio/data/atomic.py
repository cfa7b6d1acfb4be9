# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are either complete or absent, whenever the process is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pmni_nerfstudio.errors import PmniError, one_line


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


@contextmanager
def new_folder(out: Path, source: Path, overwrite: bool, is_scene: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty folder beside `out` that takes its place when the block ends; it goes if the block raises.

    What a killed process left there is removed. Those still at work hold a lock, which the system takes from the dead.

    Args:
        out: the final name. An empty folder may be there, and with `overwrite` a scene.
        source: that must not be within `out`.
        overwrite: replace a scene.
        is_scene: tells whether a folder is a scene; nothing else is ever replaced.

    Raises:
        PmniError: something is there already, or the system refuses to write.
    """
    out = Path(os.path.abspath(out))  # a link as the last part is replaced by what it leads to
    out = out.resolve() if out.is_symlink() else out
    if source.resolve() == out.resolve() or source.resolve().is_relative_to(out.resolve()):
        raise PmniError(f"{out}: is or holds the source: write to another folder")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        if not overwrite:
            raise PmniError(f"{out}: is there already: add --overwrite to replace it, or write to another folder")
        if not is_scene(out):
            raise PmniError(f"{out}: is there already and is no scene, so it is not replaced: write to another folder")
    start, old = f".{out.name}.prepare.", out.with_name(f".{out.name}.prepare.{uuid.uuid4().hex[:12]}.old")
    fresh = out.with_name(f"{start}{uuid.uuid4().hex[:12]}")
    lock = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in out.parent.glob(f"{start}*"):
            _remove_if_dead(left)
        fresh.mkdir()
        lock = os.open(fresh, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield fresh
        if out.is_dir() and any(out.iterdir()):
            out.rename(old)
        fresh.rename(out)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise PmniError(f"{out}: can't be written ({reason}): check permissions and free space") from error
    finally:
        if old.is_dir() and not out.exists():
            old.rename(out)
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_if_dead(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # its owner was faster
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(handle)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, of the same suffix, that takes its place when the block ends.

    The block has to write a file there. When it raises, the temporary file goes and `path` stays as it was. The
    temporary name begins with a dot, so that a reader of the folder does not take it for data.

    Raises:
        PmniError: the system refuses to write: the disk is full, the folder read-only, no permission.
        FileNotFoundError: the block wrote nothing, or the folder does not exist.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            reason = error.strerror or one_line(error)
            raise PmniError(f"{path}: can't be written ({reason}): check permissions and free space") from error
        raise

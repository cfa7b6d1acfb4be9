# SPDX-License-Identifier: Apache-2.0
"""Atomic replacement of files and folders: after a crash or a kill they are either complete or as they were before."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pmni_nerfstudio.errors import PmniError, one_line


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path with the same suffix beside `path`; it replaces `path` when the block ends.

    The block has to write a file to the temporary path. If the block raises, the temporary file is deleted and `path`
    stays as it was. The temporary name begins with a dot, so that readers of the folder ignore it.

    Raises:
        PmniError: writing fails: the disk is full, or permissions are missing.
        FileNotFoundError: the block wrote no file, or the folder does not exist.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{_tag()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise _write_error(path, error) from error
        raise


def write_json(path: str | os.PathLike[str], contents: object) -> None:
    """Write a JSON file atomically.

    Raises:
        PmniError: writing fails.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")


@contextmanager
def replaced_folders(
    folders: Sequence[Path], kept: Callable[[Path], bool] = lambda path: False
) -> Iterator[list[Path]]:
    """Yield an empty folder for each given folder; together they replace the given folders when the block ends.

    If the block raises, the given folders stay as they were. The new folders have hidden names beside the given ones. A
    killed process leaves them behind, and the next call removes them. Those that a running process is filling are locked,
    by which a second process notices the first.

    Args:
        folders: folders to replace; they need not exist.
        kept: whether a file or folder in the given folders is carried over to the new one.

    Raises:
        PmniError: another process is replacing a folder at this moment.
        OSError: a folder can't be created, filled or moved.
    """
    targets = [folder.resolve() for folder in folders]  # symbolic links keep pointing to the same place
    tag = _tag()
    new = [target.with_name(f".{target.name}.new.{tag}") for target in targets]
    old = [target.with_name(f".{target.name}.old.{tag}") for target in targets]
    replaced: list[Path] = []
    with ExitStack() as locks:
        try:
            for target, folder in zip(targets, new, strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                if _remove_leftovers(target):
                    raise _in_use(target)
                folder.mkdir()
                # The lock is on the folder itself and moves with it: a lock file inside would have to be deleted
                # before the folder is complete.
                handle = os.open(folder, os.O_RDONLY)
                locks.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX)
                # Of processes that start at the same moment, one goes on.
                if any(other.name < folder.name for other in _remove_leftovers(target)):
                    raise _in_use(target)
            yield new
            for target, folder in zip(targets, new, strict=True):
                for path in filter(kept, target.iterdir() if target.is_dir() else ()):
                    _copy(path, folder / path.name)
            for target, folder, previous in zip(targets, new, old, strict=True):
                if target.is_dir():
                    target.rename(previous)
                folder.rename(target)
                replaced.append(target)
        except BaseException:
            for target in replaced:
                shutil.rmtree(target)
            for target, folder, previous in zip(targets, new, old, strict=True):
                shutil.rmtree(folder, ignore_errors=True)
                if previous.is_dir():
                    previous.rename(target)
            raise
        for previous in old:
            shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def new_scene_folder(out: Path, source: Path, overwrite: bool, is_scene: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` when the block ends (see `replaced_folders`).

    Args:
        out: final path. It may be an empty folder or, with `overwrite`, a scene.
        source: folder or file that must not be inside of `out`.
        overwrite: whether to replace a scene.
        is_scene: whether a folder is a scene; no other folder is ever replaced.

    Raises:
        PmniError: `out` exists and may not be replaced, or writing fails.
    """
    resolved = out.resolve()
    if source.resolve().is_relative_to(resolved):
        raise PmniError(f"{out}: is or contains the source; write to another folder")
    if resolved.is_file() or (resolved.is_dir() and any(resolved.iterdir())):
        if not overwrite:
            raise PmniError(f"{out}: exists already; add --overwrite to replace it, or write to another folder")
        if not is_scene(resolved):
            raise PmniError(f"{out}: exists and is not a scene, so it is not replaced; write to another folder")
    try:
        with replaced_folders([out]) as (folder,):
            yield folder
    except OSError as error:
        raise _write_error(out, error) from error


def _in_use(path: Path) -> PmniError:
    return PmniError(f"{path}: is being written by another process; wait until it has ended")


def _remove_leftovers(target: Path) -> list[Path]:
    """Remove the hidden folders that killed processes left beside a folder; returns those that running ones are filling."""
    in_use = []
    for kind in ("new", "old"):
        for folder in target.parent.glob(f".{target.name}.{kind}.*"):
            try:
                handle = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:  # its process ended in the meantime
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                in_use.append(folder)
                continue
            finally:
                os.close(handle)
            shutil.rmtree(folder, ignore_errors=True)
    return in_use


def _copy(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _write_error(path: Path, error: OSError) -> PmniError:
    cause = error.strerror or one_line(error)
    return PmniError(f"{path}: can't be written ({cause}); check permissions and free space")


def _tag() -> str:
    """Random part of a temporary name."""
    return uuid.uuid4().hex[:12]

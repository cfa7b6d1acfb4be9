# SPDX-License-Identifier: Apache-2.0
"""A folder that is there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmni_nerfstudio.errors import PmniError, one_line
from pmni_nerfstudio.importers.registry import is_scene


@contextmanager
def new_folder(out: Path, source: Path, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside `out` that takes its place when the block ends; it goes if the block raises.

    What a killed process left there is removed. Those still at work hold a lock, which the system takes from the dead.

    Args:
        out: the final name. An empty folder may be there, and with `overwrite` a scene.
        source: that must not be within `out`.
        overwrite: replace a scene.

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

# SPDX-License-Identifier: Apache-2.0
"""Exclusive use of an output folder by one process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pmni_nerfstudio.data.files import printable, reason
from pmni_nerfstudio.errors import PmniError

LOCK_FILE = ".lock"
"""Name of the lock file in the folder. It is never deleted: that would allow two processes to hold a lock each."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder within the block.

    The operating system releases the lock when the process ends, however it ends. Child processes don't inherit it.

    Raises:
        PmniError: another process holds the lock, or the file system has no locks.
    """
    path = folder / LOCK_FILE
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise PmniError(
            f"{folder}: is in use by {_holder(path)}; wait until it has ended, or give another --output-dir"
        ) from error
    except (OSError, NotImplementedError) as error:  # the latter: older versions of filelock, on such file systems
        raise PmniError(
            f"{path}: can't be written or locked ({getattr(error, 'strerror', None) or reason(error)}); give another "
            "--output-dir, on a file system with file locks"
        ) from error
    try:
        with suppress(OSError):  # for the message only
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Description of the process that holds a lock, as it wrote it into the lock file."""
    with suppress(OSError):
        text = path.read_bytes()[:200].decode(errors="replace").strip()
        if text:
            return printable(text)
    return "another process"

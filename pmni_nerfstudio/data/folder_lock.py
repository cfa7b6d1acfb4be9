# SPDX-License-Identifier: Apache-2.0
"""A folder that one program at a time works in: a lock that the system takes back when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmni_nerfstudio.data.files import reason
from pmni_nerfstudio.errors import PmniError

LOCK = ".lock"
"""In the folder; it stays, since to remove it would let two programs hold one lock each."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder's lock while the block runs. Programs that the block begins don't inherit it.

    Raises:
        PmniError: another process has it, or the file system has no locks.
    """
    path = folder / LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise PmniError(f"{path}: can't be written ({reason(error)}): give another --output-dir") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = os.read(handle, 200).decode(errors="replace").strip()
            raise PmniError(
                f"{folder}: {who if who.isprintable() and who else 'another process'} is at work there: wait until it "
                "has ended, or give another --output-dir"
            ) from error
        except OSError as error:
            raise PmniError(
                f"{path}: can't be locked ({reason(error)}): give an --output-dir on a file system that has locks"
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(handle)

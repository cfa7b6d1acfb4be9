# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or not there, and what has to be true of one before it is opened."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmni_nerfstudio.errors import PmniError, SceneError, one_line


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


def check_file(path: Path) -> None:
    """See that there is a file to read: a folder has no bytes, and opening a pipe waits for ever.

    Raises:
        SceneError: it is missing, or something else.
    """
    try:
        is_file = path.is_file()  # false for a link that leads to itself
    except OSError as error:
        raise SceneError(f"{path}: can't be read ({error.strerror}): check its permissions") from error
    if not is_file:
        what = "is no regular file" if os.path.lexists(path) else "No such file"
        raise SceneError(f"{path}: {what}: put one there")


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted.

    Raises:
        SceneError: it may not be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise SceneError(f"{folder}: can't be read ({error.strerror}): check its permissions") from error


def reason(error: Exception) -> str:
    """What another library says of a broken file, to quote: one line, not too long, without what a terminal acts on."""
    return printable(one_line(error)[:200]) or type(error).__name__


def printable(said: str) -> str:
    """Words out of a file, without what breaks a line or a terminal acts on."""
    return "".join(letter if letter.isprintable() else "?" for letter in said)

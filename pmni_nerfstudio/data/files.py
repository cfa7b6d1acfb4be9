# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or not there, and what has to be true of one before it is opened."""

from __future__ import annotations

import os
from pathlib import Path

from pmni_nerfstudio.errors import PmniError, SceneError, one_line


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


def make_output_folder(folder: Path) -> None:
    """Make the folder, and see that files can be written there.

    Raises:
        PmniError: they can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PmniError(f"{folder}: can't be made ({error.strerror}): give another --output-dir") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PmniError(f"{folder}: can't be written to: give another --output-dir")

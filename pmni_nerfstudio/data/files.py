# SPDX-License-Identifier: Apache-2.0
"""Checks of files and folders before they are used, and text for messages about them."""

from __future__ import annotations

import os
from pathlib import Path

from pmni_nerfstudio.errors import PmniError, SceneError, one_line


def check_file(path: Path) -> None:
    """Check that a path is a regular file; opening a named pipe, for example, would block forever.

    Raises:
        SceneError: the file is missing, or the path is something else.
    """
    try:
        is_file = path.is_file()  # false for a link to itself
    except OSError as error:
        raise SceneError(f"{path}: can't be read ({error.strerror}); check its permissions") from error
    if not is_file:
        what = "is not a regular file" if os.path.lexists(path) else "No such file"
        raise SceneError(f"{path}: {what}; put a file there")


def entries(folder: Path) -> list[Path]:
    """Sorted contents of a folder.

    Raises:
        SceneError: the folder can't be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise SceneError(f"{folder}: can't be read ({error.strerror}); check its permissions") from error


def reason(error: Exception) -> str:
    """Message of another library's error for quoting: one line, at most 200 characters, all of them printable."""
    return printable(one_line(error)[:200]) or type(error).__name__


def printable(text: str) -> str:
    """Text from a file with line breaks and terminal control characters replaced by question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def make_output_folder(folder: Path) -> None:
    """Create a folder and check that it is writable.

    Raises:
        PmniError: the folder can't be created or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PmniError(f"{folder}: can't be created ({error.strerror}); give another --output-dir") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PmniError(f"{folder}: can't be written to; give another --output-dir")

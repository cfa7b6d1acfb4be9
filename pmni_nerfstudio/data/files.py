# SPDX-License-Identifier: Apache-2.0
"""Checks of files and folders before they are used, JSON files, and text for messages about them."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pmni_nerfstudio.errors import PmniError, SceneError, one_line

MAX_PIXELS = 1 << 27
"""Largest permitted number of pixels (1.6 GB as normals), against corrupt headers and decompression bombs."""
_MAX_JSON_BYTES = 1 << 28
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte-order marks and Python's name of the encoding; that of UTF-32 begins with that of UTF-16."""


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


def read_bytes(path: Path, count: int = -1) -> bytes:
    """Contents of a file, or its first `count` bytes.

    Raises:
        SceneError: the file is missing or can't be read.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise SceneError(f"{path}: can't be read ({error.strerror}); check the file and its permissions") from error


def check_pixels(path: Path, width: int, height: int) -> None:
    """Check the size that an image's header gives before memory is allocated.

    Raises:
        SceneError: the image has no pixels, or too many.
    """
    if not (0 < width and 0 < height and width * height <= MAX_PIXELS):
        raise SceneError(
            f"{path}: has {width}x{height} pixels according to its header, at most {MAX_PIXELS:,} are supported; "
            "export it again, or smaller"
        )


def entries(folder: Path) -> list[Path]:
    """Sorted contents of a folder.

    Raises:
        SceneError: the folder can't be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise SceneError(f"{folder}: can't be read ({error.strerror}); check its permissions") from error


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Args:
        path: JSON file.
        remedy: what to do if it is invalid, for the message.

    Raises:
        SceneError: the file is missing, too large or not JSON, or contains something else than an object.
    """
    check_file(path)
    try:
        size = path.stat().st_size
        if size > _MAX_JSON_BYTES:
            raise SceneError(f"{path}: is too large ({size:,} bytes); {remedy}")
        contents = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:  # deeply nested lists exceed the recursion limit
        raise SceneError(f"{path}: can't be read as JSON ({reason(error)}); {remedy}") from error
    if not isinstance(contents, dict):
        raise SceneError(f"{path}: is not a JSON object; {remedy}")
    return contents


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in the encoding of its byte-order mark (UTF-8, UTF-16 or UTF-32), without the mark.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is not text in that encoding.
    """
    content = path.read_bytes()
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding)
    return content.decode("utf-8")


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


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Make an output folder for the block, and remove it if the block fails before anything was written to it.

    Raises:
        PmniError: the folder can't be created or is not writable.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_output_folder(folder)
    try:
        yield
    except PmniError:
        with suppress(OSError):  # it is not empty
            for path in made:
                path.rmdir()
        raise

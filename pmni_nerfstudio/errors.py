# SPDX-License-Identifier: Apache-2.0
"""Errors that the user can correct, and their presentation on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NO_TEMPORARY_FOLDER = "No usable temporary directory"
"""Prefix of the FileNotFoundError raised by Python's tempfile module."""


class PmniError(Exception):
    """An error that the user can correct. `str(error)` is one line: where, what is wrong, and how to correct it."""


class SceneError(PmniError):
    """An error in a scene folder. The message begins with the file or folder."""


def one_line(error: BaseException) -> str:
    """Message of an error on a single line, for quoting in another message."""
    return " ".join(str(error).split())


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print a PmniError as one line on stderr and exit with code 1, without a traceback.

    The same applies if there is no place for temporary files, as on a full disk: many libraries look for one on import.

    Raises:
        SystemExit: with code 1, in place of these errors. Other exceptions are defects and propagate.
    """
    try:
        yield
    except PmniError as error:
        message = str(error)
    except FileNotFoundError as error:
        if _NO_TEMPORARY_FOLDER not in str(error):
            raise
        message = f"{error.strerror or one_line(error)}; free disk space, or set TMPDIR to a writable folder"
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1) from None

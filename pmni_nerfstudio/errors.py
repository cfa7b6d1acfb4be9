# SPDX-License-Identifier: Apache-2.0
"""Errors that the user can correct, their presentation on the command line, and warnings that nobody can act on."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

_NO_TEMPORARY_FOLDER = "No usable temporary directory"
"""Prefix of the FileNotFoundError raised by Python's tempfile module."""


class PmniError(Exception):
    """An error that the user can correct. `str(error)` is one line: where, what is wrong, and how to correct it."""

    exit_code: ClassVar[int] = 1
    """Exit code of a command that ends with this error."""


class SceneError(PmniError):
    """An error in a scene folder. The message begins with the file or folder."""


class FailedResultError(PmniError):
    """A command has written its result, but the result cannot be trusted."""

    exit_code = 2


def one_line(error: BaseException) -> str:
    """Message of an error on a single line, for quoting in another message."""
    return " ".join(str(error).split())


def print_warnings(lines: Iterable[str]) -> None:
    """Print warnings of a command to stderr, one line each."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    for line in lines:
        console.print(f"[bold yellow]Warning: {escape(line)}", soft_wrap=True)


def hide_dependency_warnings() -> None:
    """Hide warnings of PyTorch about nerfstudio's use of it, which users cannot change.

    The scheduler's is about poses that move by Gauss-Newton steps instead of their optimizer.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|nerfstudio)\.")
    for message in (
        "Using a non-tuple sequence",
        "Detected call of `lr_scheduler",
        "Converting a tensor with requires_",
    ):
        warnings.filterwarnings("ignore", message=message, module=r"nerfstudio\.")


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print a PmniError as one line on stderr and exit with its code (1 unless it says otherwise), without a traceback.

    The same applies if there is no place for temporary files, as on a full disk: many libraries look for one on import.

    Raises:
        SystemExit: with the code of the error, in place of these errors. Other exceptions are defects and propagate.
    """
    try:
        yield
    except PmniError as error:
        message, code = str(error), error.exit_code
    except FileNotFoundError as error:
        if _NO_TEMPORARY_FOLDER not in str(error):
            raise
        code = 1
        message = f"{error.strerror or one_line(error)}; free disk space, or set TMPDIR to a writable folder"
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code) from None

# SPDX-License-Identifier: Apache-2.0
"""Errors that are the user's to mend, and how the command line shows them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NO_TEMPORARY_FOLDER = "No usable temporary directory"
"""How the error of Python's tempfile begins, whose class is that of missing files."""


class PmniError(Exception):
    """A mistake that the user can mend: `str(error)` is one line that says where, what, and what to do."""


class SceneError(PmniError):
    """Something is wrong with a scene folder: the line begins with the file or folder."""


def one_line(error: BaseException) -> str:
    """What an error of another library says, as one line to quote."""
    return " ".join(str(error).split())


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn a PmniError into one line on stderr and exit code 1, without a traceback.

    So is told where there is no place for temporary files, as on a full disk: many libraries ask for it as they load.

    Raises:
        SystemExit: with code 1, in place of these. Any other exception passes: it is a defect, not a mistake.
    """
    try:
        yield
    except PmniError as error:
        said = str(error)
    except FileNotFoundError as error:
        if _NO_TEMPORARY_FOLDER not in str(error):
            raise
        said = f"{error.strerror or one_line(error)}: free some disk space, or set TMPDIR to a folder that can be written to"
    else:
        return
    print(f"error: {said}", file=sys.stderr)
    raise SystemExit(1) from None

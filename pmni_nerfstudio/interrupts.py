# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C during a run: the first one ends it in order, the second one at once; and the command that goes on."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Literal, Optional

EXIT_CODE = 130
"""Exit code of an interrupted run: 128 plus the number of the signal, as shells have it."""
Response = Literal["raise", "request"]
METHODS = ("pmni", "pmni-calibrated", "pmni-original")
"""Names of the methods that this package adds to ns-train."""
_RESUME_OPTIONS = ("--load-dir", "--load-step", "--load-checkpoint")
_PROGRAMS = ("ns-train", "train.py")
"""Names under which nerfstudio's training program is started: its script, or `python -m nerfstudio.scripts.train`."""


class Interrupts:
    """Ctrl-C of one run.

    Only the main thread receives signals, and a process started in the background may ignore them; both stay so.
    """

    def __init__(self) -> None:
        self.requested = False
        """Whether Ctrl-C was pressed."""

    @contextmanager
    def handled(self, response: Response) -> Iterator[None]:
        """Respond to Ctrl-C within the block.

        Args:
            response: What the first Ctrl-C does: raise KeyboardInterrupt, or only set `requested`, for code that looks at
                it at a suitable moment. The second one ends the process at once.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
            yield
            return

        def respond(number: int, frame: Optional[FrameType]) -> None:
            if self.requested:
                os.write(2, b"\nstopped at once\n")
                os._exit(EXIT_CODE)
            self.requested = True
            if response == "raise":
                raise KeyboardInterrupt
            os.write(2, b"\nStopping after this step; press Ctrl-C again to stop at once.\n")

        previous = signal.signal(signal.SIGINT, respond)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


def exit_before_training() -> None:
    """Let Ctrl-C end a process that ns-train has started for one of our methods with one line, until a trainer responds to it.

    Called when nerfstudio first imports this package: its further imports, the command line and the checks of the data
    take longer than those before. Other programs, methods and handlers are left alone.
    """
    program, *arguments = sys.argv
    ours = Path(program).name in _PROGRAMS and arguments[:1] and arguments[0] in METHODS
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not ours or not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return

    def respond(number: int, frame: Optional[FrameType]) -> None:
        # Not by an exception: Python discards one that is raised while a finalizer (`__del__`) runs, and goes on.
        os.write(2, f"stopped; start again with: {command_to_resume(arguments[0], None, None)}\n".encode())
        with suppress(RuntimeError):  # the main thread was writing to it
            sys.stdout.flush()
        os._exit(EXIT_CODE)

    signal.signal(signal.SIGINT, respond)


def exit_interrupted(message: str) -> SystemExit:
    """Print one line on stderr, in place of a traceback; the exception to raise."""
    print(message, file=sys.stderr, flush=True)
    return SystemExit(EXIT_CODE)


def command_to_resume(
    method: str, data: Optional[Path], checkpoints: Optional[Path], words: Optional[Sequence[str]] = None
) -> str:
    """Command for a shell that goes on with a run.

    Args:
        method: Name of the method.
        data: The run's data, for a run that ns-train did not start.
        checkpoints: Folder of its checkpoints; None: the run starts anew.
        words: Command that started it; by default, that of this process.
    """
    program, *arguments = sys.argv if words is None else words
    if Path(program).name not in _PROGRAMS or arguments[:1] != [method]:
        arguments = [method, *([] if data is None else ["--data", str(data)])]
    options = arguments[1:]
    if checkpoints is not None:
        options = ["--load-dir", str(checkpoints), *_without(options, _RESUME_OPTIONS)]
    # Options of the method itself stand before those of its parts, which may be subcommands.
    return shlex.join(["ns-train", method, *options])


def _without(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """Words of a command without some options and their values."""
    kept: list[str] = []
    skip = False
    for word in words:
        name, separator, _ = word.partition("=")
        if skip:
            skip = False
        elif name.replace("_", "-") in options:
            skip = not separator
        else:
            kept.append(word)
    return kept

# SPDX-License-Identifier: Apache-2.0
"""Command-line programs, each in a process of its own, without the 10 to 20 seconds that their imports take.

A server process imports what the programs need once; each program is forked from it. Apart from that a program is
started as its console script or `python FILE` would be: words, exit code, output, signals.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from multiprocessing.context import ForkServerProcess
from pathlib import Path

PRELOADED = (
    "nerfstudio.scripts.train",
    "nerfstudio.configs.method_configs",
    "torch.utils.tensorboard",
    "open3d",
    "trimesh",
    "cv2",
    "scipy.optimize",
    "scipy.sparse.linalg",
    "skimage.measure",
    "pmni_nerfstudio.cli",
    "pmni_nerfstudio.pmni_config",
)


@dataclass(frozen=True)
class Ended:
    """A program that ended."""

    code: int
    """Exit code; minus the signal's number if a signal ended it."""
    output: str
    """What it wrote to standard output and standard error together."""


class Program:
    """A running program.

    Args:
        words: a console script of this environment, or `python` and a file, with arguments.
        folder: working directory.
        largest_file: limit on the size of files that it writes, in bytes.
    """

    def __init__(
        self, words: Sequence[str | Path], folder: Path | None = None, largest_file: int | None = None
    ) -> None:
        with tempfile.NamedTemporaryFile(prefix="program", suffix=".log", delete=False) as log:
            self._log = Path(log.name)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOADED])
        given = [str(word) for word in words], self._log, folder or Path.cwd(), largest_file, dict(os.environ)
        self.process: ForkServerProcess = context.Process(target=_run, args=given)
        self.process.start()

    def wait(self, seconds: float | None = None) -> Ended:
        """Wait until it has ended; kill it after so many seconds."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        output = self.output
        self._log.unlink(missing_ok=True)
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, output)

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGINT)


def run(
    words: Sequence[str | Path],
    seconds: float | None = None,
    folder: Path | None = None,
    largest_file: int | None = None,
) -> Ended:
    """Run a program to its end, or kill it after so many seconds; see Program."""
    return Program(words, folder, largest_file).wait(seconds)


def _run(words: list[str], log: Path, folder: Path, largest_file: int | None, environment: dict[str, str]) -> None:
    """In the program's process."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    program, *arguments = words
    name = Path(program).name
    with contextlib.suppress(KeyError):
        del sys.modules["__mp_main__"]
    if name.startswith("python"):
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        (script,) = entry_points(group="console_scripts", name=name)
        sys.argv = words
        sys.exit(script.load()())

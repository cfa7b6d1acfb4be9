# SPDX-License-Identifier: Apache-2.0
"""Command-line programs, each in a process of its own, without the 10 to 20 seconds that their imports take.

A server process imports what the programs need once; each program is forked from it. Apart from that a program is
started as its console script or `python FILE` would be: words, exit code, output, signals.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import psutil
import pytest

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.studies.processes import ResourceUsage

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
SECONDS_TO_START = 120
LONGEST = 600.0
"""Seconds after which a program is killed."""


@dataclass(frozen=True)
class Ended:
    """Result of a program."""

    code: int
    """Exit code; minus the signal's number if a signal ended it."""
    stdout: str
    """Standard output."""
    stderr: str
    """Standard error."""

    @property
    def output(self) -> str:
        """Standard output, then standard error."""
        return self.stdout + self.stderr


class Program:
    """A running program.

    Args:
        words: a console script of this environment, or `python` and a file, with arguments.
        folder: working directory.
        largest_file: limit on the size of the files that it writes, in bytes: as if the disk were full.
        environment: variables to add.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        folder: Path | None = None,
        largest_file: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._streams = bytearray(), bytearray()
        with tempfile.TemporaryDirectory(prefix="program") as name:
            pipes = Path(name) / "stdout", Path(name) / "stderr"
            self._readers = []
            for pipe, stream in zip(pipes, self._streams):
                os.mkfifo(pipe)
                self._readers.append(threading.Thread(target=_read, args=(pipe, stream), daemon=True))
                self._readers[-1].start()
            context = _context()
            ready = context.Event()
            variables = {**os.environ, **(environment or {})}
            given = [str(word) for word in words], pipes, folder or Path.cwd(), largest_file, variables, ready
            self.process: ForkServerProcess = context.Process(target=_run, args=given)
            self.process.start()
            assert ready.wait(SECONDS_TO_START), f"{words[0]} does not start"

    @property
    def output(self) -> str:
        """Everything that it has written so far."""
        return "".join(stream.decode(errors="replace") for stream in self._streams)

    def wait(self, seconds: float = LONGEST) -> Ended:
        """Wait until it has ended; kill it after so many seconds."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        for reader in self._readers:
            reader.join(1.0)  # longer only if a child process outlives it
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, *(stream.decode(errors="replace") for stream in self._streams))

    def watch(self, cpu_seconds: float = float("inf")) -> tuple[Ended, float]:
        """Wait until it has ended, or kill it once it has used so much CPU time, which does not depend on other programs.

        Returns:
            Its result, and the CPU time that it and its child processes have used, in seconds.
        """
        deadline, used = time.monotonic() + LONGEST, 0.0
        while self.process.is_alive() and used < cpu_seconds and time.monotonic() < deadline:
            try:
                parent = psutil.Process(self.process.pid)
                # User and system time of each, and of those of its children that have ended.
                used = sum(sum(each.cpu_times()[:4]) for each in (parent, *parent.children(recursive=True)))
            except psutil.NoSuchProcess:
                pass
            self.process.join(0.1)
        return self.wait(0), used

    def interrupt(self) -> None:
        """Send the signal that Ctrl-C sends."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGINT)


def run(
    words: Sequence[str | Path],
    seconds: float = LONGEST,
    folder: Path | None = None,
    largest_file: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a program to its end, or kill it after so many seconds; see Program."""
    return Program(words, folder, largest_file, environment).wait(seconds)


def run_forked(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, **_: object
) -> ResourceUsage:
    """In the place of `studies.processes.run_command`: the real program, without the time of its imports."""
    start = time.perf_counter()
    ended = run(command, environment=environment)
    log.write_text(ended.output)
    if ended.code != 0:
        raise PmniError(ended.output[-2000:])
    return ResourceUsage(time.perf_counter() - start, 1.0)


@lru_cache
def _context() -> ForkServerContext:
    """The server process, started once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    with pytest.MonkeyPatch.context() as patch:
        # OpenMP's threads do not survive a fork: computations during the imports must not start any.
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def _read(pipe: Path, into: bytearray) -> None:
    with pipe.open("rb", buffering=0) as stream:
        while chunk := stream.read(1 << 16):
            into += chunk


def _run(
    words: list[str],
    pipes: tuple[Path, Path],
    folder: Path,
    largest_file: int | None,
    environment: dict[str, str],
    ready: Event,
) -> None:
    """Become the program, in the forked process."""
    import torch

    from pmni_nerfstudio.interrupts import exit_before_training

    for descriptor, pipe in enumerate(pipes, start=1):
        os.dup2(os.open(pipe, os.O_WRONLY), descriptor)
    sys.argv = words
    exit_before_training()  # as the first import of the package does, which here came before the program
    ready.set()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if largest_file is not None:
        sys.dont_write_bytecode = True  # a truncated cache of a module would break the next import
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    # As in a process that has just started: threads for all cores, and no temporary folder chosen yet.
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    tempfile.tempdir = None
    program, *arguments = words
    if Path(program).name.startswith("python"):
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        (script,) = entry_points(group="console_scripts", name=Path(program).name)
        sys.exit(script.load()())

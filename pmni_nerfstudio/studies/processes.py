# SPDX-License-Identifier: Apache-2.0
"""Commands of this environment as processes: what they print goes to a file, and they end with the program that began
them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pmni_nerfstudio.errors import PmniError

BIN = Path(sys.executable).parent
"""Where the commands are."""


@dataclass(frozen=True)
class Spent:
    """What a process took."""

    seconds: float
    """Wall time."""
    peak_mb: float
    """Most memory resident at once. (At least what this program itself held at most: Linux hands that on.)"""


class Stopped(Exception):
    """A command was ended by `Stop`, or not begun."""


class Stop:
    """Ends commands from another thread: those at work are killed, and no more begin."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._is_set = False

    def set(self) -> None:
        """Kill all that were begun, with their own children."""
        with self._lock:
            self._is_set = True
            for pid in self._running:
                os.killpg(pid, signal.SIGKILL)

    def wait(self, begin: Callable[[], subprocess.Popen]) -> subprocess.Popen:
        """Begin a process, a session's first, and wait until it has ended. It is left to be reaped.

        Raises:
            Stopped: `set` was called before or meanwhile.
        """
        with self._lock:
            if self._is_set:
                raise Stopped
            process = begin()
            self._running.add(process.pid)
        try:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            with self._lock:  # from here on its number may be another's
                self._running.remove(process.pid)
                if self._is_set:
                    process.wait()
                    raise Stopped
        return process


def run_command(
    command: Sequence[str],
    log: Path,
    bin_folder: Path = BIN,
    environment: Mapping[str, str] | None = None,
    stop: Stop | None = None,
) -> Spent:
    """Run a command to its end.

    Args:
        command: program and arguments.
        log: of all that it prints; added to.
        bin_folder: of the program.
        environment: added to this process's own.
        stop: ends it early.

    Raises:
        PmniError: it failed: its last words, and where the others are.
        Stopped: `stop` was set.
    """
    full = {**os.environ, "OMP_WAIT_POLICY": "passive", **(environment or {})}
    with log.open("ab") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        before = file.tell()
        start = time.perf_counter()
        # A session of its own: the terminal's Ctrl-C goes to this program alone. ns-train would end with code 0 on it,
        # as if it had trained.
        process = (stop or Stop()).wait(
            lambda: subprocess.Popen(
                [*_dies_with_us(), str(bin_folder / command[0]), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=full,
                start_new_session=True,
            )
        )
    seconds = time.perf_counter() - start
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        told = log.read_bytes()[before:].decode(errors="replace")
        raise PmniError(f"{' '.join(command[:2])}: {_last_words(told, process.returncode)} (all of it: {log})")
    return Spent(seconds, usage.ru_maxrss / 1024)  # Linux counts kilobytes


def _dies_with_us() -> list[str]:
    """What to put before a command so that Linux ends it when the thread that began it ends: a killed suite leaves
    nobody at work. (util-linux; elsewhere nothing.)"""
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


def _last_words(told: str, code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error:")]
    if errors:
        return errors[-1][:300]
    if lines and lines[-1].startswith("╰"):  # what is wrong with a command line stands in a frame, its title above
        top = max((i for i, line in enumerate(lines) if line.startswith("╭")), default=-1)
        inside = [line.strip("│ ") for line in lines[top + 1 : -1]]
        until = next((i for i, line in enumerate(inside) if set(line) == {"─"}), len(inside))
        return " ".join(inside[:until])[:300]
    return lines[-1][:300] if lines else f"ended with code {code} and said nothing"

# SPDX-License-Identifier: Apache-2.0
"""Commands of this Python environment as subprocesses: logged, measured, and killed together with their parent."""

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

BIN_FOLDER = Path(sys.executable).parent
"""Folder of the environment's commands."""


@dataclass(frozen=True)
class ResourceUsage:
    """Time and memory used by a process."""

    seconds: float
    """Wall time."""
    peak_mb: float
    """Peak resident memory in MB; at least the peak of the parent process, which Linux passes on to its children."""


class Canceled(Exception):
    """A command was killed, or not started, because of a `Cancellation`."""


class Cancellation:
    """Cancels commands from another thread: running ones are killed, and no others are started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._is_canceled = False

    def cancel(self) -> None:
        """Kill the running commands with all their child processes."""
        with self._lock:
            self._is_canceled = True
            for pid in self._running:
                os.killpg(pid, signal.SIGKILL)

    def run(self, start: Callable[[], subprocess.Popen]) -> subprocess.Popen:
        """Start a process and wait until it has exited, without reaping it.

        Args:
            start: starts the process in a session of its own.

        Raises:
            Canceled: `cancel` was called before or during the run.
        """
        with self._lock:
            if self._is_canceled:
                raise Canceled
            process = start()
            self._running.add(process.pid)
        try:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            with self._lock:  # once the process is reaped, its number may belong to another one
                self._running.remove(process.pid)
                if self._is_canceled:
                    process.wait()
                    raise Canceled
        return process


def run_command(
    command: Sequence[str],
    log: Path,
    bin_folder: Path = BIN_FOLDER,
    environment: Mapping[str, str] | None = None,
    cancellation: Cancellation | None = None,
    name: str | None = None,
) -> ResourceUsage:
    """Run a command and wait until it has exited.

    Args:
        command: program and arguments.
        log: file to which the command and its output are appended.
        bin_folder: folder of the program.
        environment: variables to add to the environment of this process.
        cancellation: allows another thread to cancel the command.
        name: beginning of the message if the command fails; by default its first two words.

    Raises:
        PmniError: the command failed; the message has its last error and the path of the log.
        Canceled: the command was canceled.
    """
    full = {**os.environ, "OMP_WAIT_POLICY": "passive", **(environment or {})}
    with log.open("ab") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        before = file.tell()
        start = time.perf_counter()
        # A session of its own shields the process from Ctrl-C in the terminal, after which ns-train would exit with
        # code 0, as if the training had completed.
        process = (cancellation or Cancellation()).run(
            lambda: subprocess.Popen(
                [*_kill_with_parent(), str(bin_folder / command[0]), *command[1:]],
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
        output = log.read_bytes()[before:].decode(errors="replace")
        raise PmniError(f"{name or ' '.join(command[:2])}: {_failure_message(output, process.returncode)} (see {log})")
    return ResourceUsage(seconds, usage.ru_maxrss / 1024)  # Linux reports kilobytes


def _kill_with_parent() -> list[str]:
    """Command prefix by which Linux kills the command when the thread that started it exits, e.g. a killed suite.

    Empty where setpriv (util-linux) is not installed.
    """
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


def _failure_message(output: str, code: int) -> str:
    """Last error message in the output of a failed command, or else its last line."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error:")]
    if errors:
        return errors[-1][:300]
    if lines and lines[-1].startswith("╰"):  # tyro's errors in a frame: the message ends at the first rule
        top = max((i for i, line in enumerate(lines) if line.startswith("╭")), default=-1)
        inside = [line.strip("│ ") for line in lines[top + 1 : -1]]
        until = next((i for i, line in enumerate(inside) if set(line) == {"─"}), len(inside))
        return " ".join(inside[:until])[:300]
    return lines[-1][:300] if lines else f"exited with code {code} without any output"

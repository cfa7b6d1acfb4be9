# SPDX-License-Identifier: Apache-2.0
"""Commands of this environment as processes: what they print goes to a file, and they end with the program that began
them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
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
    """Most memory resident at once."""


def run_command(
    command: Sequence[str], log: Path, bin_folder: Path = BIN, environment: Mapping[str, str] | None = None
) -> Spent:
    """Run a command to its end.

    Args:
        command: program and arguments.
        log: of all that it prints; added to.
        bin_folder: of the program.
        environment: added to this process's own.

    Raises:
        PmniError: it failed: its last words, and where the others are.
    """
    start = time.perf_counter()
    full = {**os.environ, "OMP_WAIT_POLICY": "passive", **(environment or {})}
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            [*_dies_with_us(), str(bin_folder / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=full,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise PmniError(f"{' '.join(command[:2])}: {_last_words(log, process.returncode)} (all of it: {log})")
    return Spent(time.perf_counter() - start, usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2))


def _dies_with_us() -> list[str]:
    """What to put before a command so that Linux ends it when the thread that began it ends: a killed suite leaves
    nobody at work. (util-linux; elsewhere nothing.)"""
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


def _last_words(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    told = [line for line in lines if line.startswith("error:")] or [line for line in lines if line]
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return told[-1].removeprefix("error: ")[:300]

# SPDX-License-Identifier: Apache-2.0
"""Programs that serve a page until they are stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SECONDS_TO_START = 120
SECONDS_TO_STOP = 30


def free_port() -> int:
    """Of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def served(
    words: Sequence[str | os.PathLike[str]], port_option: str = "--viewer.websocket-port", code: int | None = None
) -> Iterator[str]:
    """Start a server on a free port: its address, from when it answers there until the block ends; then interrupt it.

    Args:
        words: of the command.
        port_option: that takes the port.
        code: with which it has to end when interrupted, as Ctrl-C does; None: any.

    Raises:
        AssertionError: it ended by itself, showed no page, or ended with another code.
        subprocess.TimeoutExpired: it doesn't stop.
    """
    port = free_port()
    process = subprocess.Popen(
        [*words, port_option, str(port)],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}/"
    try:
        start = time.monotonic()
        while not _answers(url):
            assert process.poll() is None, f"{words[0]} ended by itself, with {process.returncode}"
            assert time.monotonic() - start < SECONDS_TO_START, f"{words[0]} shows no page"
            time.sleep(0.5)
        yield url
        process.send_signal(signal.SIGINT)
        ended = process.wait(timeout=SECONDS_TO_STOP)
        assert code in (None, ended), f"{words[0]} ended with {ended}"
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False

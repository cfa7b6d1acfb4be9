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
from collections.abc import Sequence

SECONDS_TO_START = 120
SECONDS_TO_STOP = 30


def free_port() -> int:
    """Of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def serve_once(words: Sequence[str | os.PathLike[str]], port_option: str = "--viewer.websocket-port") -> str:
    """Start a server on a free port, get its page, interrupt it as Ctrl-C does, and return the page.

    Raises:
        AssertionError: it ended by itself, or showed no page.
        subprocess.TimeoutExpired: it doesn't stop.
    """
    port = free_port()
    process = subprocess.Popen(
        [*words, port_option, str(port)],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        start, page = time.monotonic(), ""
        while not page:
            assert process.poll() is None, f"{words[0]} ended by itself, with {process.returncode}"
            assert time.monotonic() - start < SECONDS_TO_START, f"{words[0]} shows no page"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    page = answer.read().decode()
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=SECONDS_TO_STOP)
        return page
    finally:
        process.kill()
        process.wait()

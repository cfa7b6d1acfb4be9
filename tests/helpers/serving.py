# SPDX-License-Identifier: Apache-2.0
"""Programs that serve a page until they are stopped."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from helpers.programs import Program

SECONDS_TO_START = 120
SECONDS_TO_STOP = 30


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def served(
    words: Sequence[str | Path], port_option: str = "--viewer.websocket-port", code: int | None = None
) -> Iterator[str]:
    """Run a server on a free port until the block ends, then interrupt it.

    Args:
        words: the command.
        port_option: option that takes the port.
        code: exit code that the interrupted server must have; None: any.

    Yields:
        The server's address, once it answers there.

    Raises:
        AssertionError: the server ended by itself, showed no page, did not stop, or ended with another code.
    """
    port = free_port()
    program = Program([*words, port_option, str(port)])
    url = f"http://127.0.0.1:{port}/"
    try:
        start = time.monotonic()
        while not _answers(url):
            assert program.process.is_alive(), f"{words[0]} ended by itself: {program.output[-2000:]}"
            assert time.monotonic() - start < SECONDS_TO_START, f"{words[0]} shows no page"
            time.sleep(0.2)
        yield url
        program.interrupt()
        program.process.join(SECONDS_TO_STOP)
        assert not program.process.is_alive(), f"{words[0]} does not stop when interrupted"
        assert code in (None, program.process.exitcode), f"{words[0]} ended with {program.process.exitcode}"
    finally:
        program.wait(0)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False

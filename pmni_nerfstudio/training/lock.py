# SPDX-License-Identifier: Apache-2.0
"""The lock that training and pages share, which gives pages their turn at once, and a bounded part of the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Optional

SHARE = 0.05
"""Of the wall clock, for pages while training runs. They take processor time outside the lock too (pictures are packed
and sent), and a browser on the same machine takes its own: benchmarks/bench_viewer.py measures what all of it costs."""
MOST_CREDIT = 0.05
"""Seconds that a page may hold the lock after long rest before it has to wait."""


class TrainingLock:
    """In the place of the trainer's `threading.Lock`.

    A plain lock knows no fairness: the training loop lets go of it and has it again before a waiting thread has woken,
    so that frames come when chance has it. And nothing there bounds how much of the time frames take. Here a page's
    thread that waits, and has time to its credit, goes before the next training step; what it holds is taken off its
    credit, which grows by SHARE of the wall clock. While training rests (paused or complete) nothing is counted.

    Until `open` is called pages wait: there is nothing yet to be rendered.

    Args:
        training: whether training runs now.
        clock: in seconds.
    """

    def __init__(self, training: Callable[[], bool], clock: Callable[[], float] = time.perf_counter) -> None:
        self._training, self._clock = training, clock
        self._changed = threading.Condition()
        self._trainer: Optional[int] = None
        self._holder: Optional[int] = None
        self._waiting = 0
        self._credit, self._counted, self._since = MOST_CREDIT, clock(), 0.0

    def open(self) -> None:
        """Let pages in; the calling thread is the one that trains."""
        with self._changed:
            self._trainer = threading.get_ident()
            self._changed.notify_all()

    @property
    def is_open(self) -> bool:
        """Whether `open` was called."""
        return self._trainer is not None

    def affordable(self) -> bool:
        """Whether a page's thread would be let in as soon as the lock is free."""
        with self._changed:
            return self.is_open and self._wait_needed() == 0

    def _wait_needed(self) -> float:
        """Seconds until pages have credit again."""
        now = self._clock()
        self._credit = min(self._credit + SHARE * (now - self._counted), MOST_CREDIT)
        self._counted = now
        return 0.0 if not self._training() else max(-self._credit / SHARE, 0.0)

    def acquire(self) -> bool:
        """Wait for the lock, as long as it takes."""
        me = threading.get_ident()
        with self._changed:
            if me == self._trainer or self._trainer is None and me == threading.main_thread().ident:
                while self._holder is not None or (self.is_open and self._waiting and self._wait_needed() == 0):
                    # Waiting pages were woken when the last holder let go; the time is for the case that one has died.
                    self._changed.wait(0.05)
            else:
                self._waiting += 1
                try:
                    while True:
                        wait = self._wait_needed()
                        if self.is_open and self._holder is None and wait == 0:
                            break
                        # Not for long: a pause, which lifts the bound, tells nobody.
                        self._changed.wait(min(wait, 0.1) or 0.1)
                finally:
                    self._waiting -= 1
            self._holder, self._since = me, self._clock()
        return True

    def release(self) -> None:
        """Let go.

        Raises:
            RuntimeError: the calling thread doesn't hold it.
        """
        with self._changed:
            if self._holder != threading.get_ident():
                raise RuntimeError("the training lock is not held by this thread")
            if self.is_open and self._holder != self._trainer:
                self._wait_needed()
                self._credit -= self._clock() - self._since
            self._holder = None
            self._changed.notify_all()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exception: Any) -> None:
        self.release()

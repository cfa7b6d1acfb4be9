# SPDX-License-Identifier: Apache-2.0
"""Fair lock between training and the viewer: viewer threads go first, for a bounded share of the time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional, Set

from pmni_nerfstudio.errors import PmniError

VIEWER_SHARE, MOVING_SHARE = 0.05, 0.20
"""Share of the wall clock time that viewer threads may hold the lock during training: at rest, and while somebody moves the
page's camera.

They also use processor time outside the lock (images are encoded and sent), and a browser on the same machine uses its
own: benchmarks/bench_viewer.py measures the total cost."""
MAX_CREDIT_SECONDS = 0.05
"""Time in seconds that viewer threads may hold the lock after a long idle period before they have to wait."""
MAX_MOVING_DEBT_SECONDS = 0.2
"""Largest debt while somebody moves: a frame that took unexpectedly long delays the next by a second and no more."""
REST_SECONDS = 2.0
"""Time in seconds after the last movement until the share is that at rest: the sharp frame comes in it."""


class TrainingLock:
    """Replacement of the trainer's `threading.Lock`, which is neither fair nor bounds the viewer's share of the time.

    With a plain lock, the training loop releases the lock and acquires it again before a waiting thread has woken up, so
    that frames are rendered at random times. Here a waiting viewer thread with credit goes before the next training
    step. The time for which it holds the lock is subtracted from the credit, which grows by VIEWER_SHARE of the wall
    clock time, and by MOVING_SHARE while somebody moves the camera (`moved`). Nothing is counted while training is paused
    or complete. What the user asks for with a button
    (`requested`) goes before the next step without credit, and costs none; but a step follows before what is asked for in
    the meantime.

    Viewer threads wait until `open` is called, because there is nothing to render before. The thread that holds the lock
    may acquire it again.

    Args:
        is_training: Returns whether training is running.
        clock: Returns the time in seconds.
    """

    def __init__(self, is_training: Callable[[], bool], clock: Callable[[], float] = time.perf_counter) -> None:
        self._is_training, self._clock = is_training, clock
        self._changed = threading.Condition()
        self._trainer: Optional[int] = None
        self._holder: Optional[int] = None
        self._depth, self._costs = 0, True
        self._waiting = 0
        self._requests: Set[int] = set()
        self._num_requests = 0
        self._before_step: Optional[int] = None
        self._credit, self._credited_at, self._acquired_at = MAX_CREDIT_SECONDS, clock(), 0.0
        self._moves_until = -math.inf
        self._held = threading.local()

    def open(self) -> None:
        """Admit viewer threads; the calling thread becomes the training thread."""
        with self._changed:
            self._trainer = threading.get_ident()
            self._changed.notify_all()

    @property
    def is_open(self) -> bool:
        """Whether `open` was called."""
        return self._trainer is not None

    def moved(self) -> None:
        """Note that somebody moves the page's camera.

        A movement begins without debt, or the frames before it would delay its first one.
        """
        with self._changed:
            self._seconds_to_credit()
            if self._credited_at > self._moves_until:
                self._credit = max(self._credit, 0.0)
            self._moves_until = self._credited_at + REST_SECONDS
            self._changed.notify_all()

    @property
    def held_seconds(self) -> float:
        """Time in seconds for which the calling thread has last held the lock."""
        return getattr(self._held, "seconds", 0.0)

    def has_credit(self) -> bool:
        """Whether a viewer thread would be admitted as soon as the lock is free."""
        with self._changed:
            return self.is_open and self._seconds_to_credit() == 0

    def _seconds_to_credit(self) -> float:
        """Update the credit; time in seconds until viewer threads have credit again."""
        now = self._clock()
        share = MOVING_SHARE if self._credited_at < self._moves_until else VIEWER_SHARE
        self._credit = min(self._credit + share * (now - self._credited_at), MAX_CREDIT_SECONDS)
        self._credited_at = now
        share = MOVING_SHARE if now < self._moves_until else VIEWER_SHARE
        return 0.0 if not self._is_training() else max(-self._credit / share, 0.0)

    def acquire(self) -> bool:
        """Wait for the lock without a timeout."""
        me = threading.get_ident()
        with self._changed:
            if me == self._holder:
                self._depth += 1
                return True
            if me == self._trainer or self._trainer is None and me == threading.main_thread().ident:
                self._before_step = self._num_requests
                try:
                    while self._holder is not None or self._must_give_way(self._before_step):
                        # Waiting threads were notified at the last release; the timeout covers one that has since died.
                        self._changed.wait(0.05)
                finally:
                    self._before_step = None
            else:
                self._waiting += 1
                try:
                    while True:
                        wait = self._seconds_to_credit()
                        if self.is_open and self._holder is None and wait == 0:
                            break
                        # A short timeout, because pausing the training lifts the bound without a notification.
                        self._changed.wait(min(wait, 0.1) or 0.1)
                finally:
                    self._waiting -= 1
            self._hold(me, costs=True)
        return True

    @contextmanager
    def requested(self, seconds: float) -> Iterator[None]:
        """Hold the lock for an action that the user asked for: before the next step, whatever the credit.

        Args:
            seconds: Longest time to wait; infinity for as long as it takes.

        Raises:
            PmniError: The lock was not free in that time.
        """
        me = threading.get_ident()
        with self._changed:
            if me == self._holder:
                self._depth += 1
            else:
                self._num_requests += 1
                number = self._num_requests
                self._requests.add(number)
                try:
                    timeout = None if math.isinf(seconds) else seconds
                    if not self._changed.wait_for(lambda: self._is_turn_of(number), timeout):
                        raise PmniError(f"training or another action was busy for {seconds:g} s; try again")
                finally:
                    self._requests.remove(number)
                self._hold(me, costs=False)
        try:
            yield
        finally:
            self.release()

    def _is_turn_of(self, request: int) -> bool:
        """Whether a request may have the lock: not if the training thread has waited for longer."""
        free = self.is_open and self._holder is None
        return free and (self._before_step is None or request <= self._before_step)

    def _must_give_way(self, last_request: int) -> bool:
        """Whether the training thread lets others go first. Once training has ended it does not: it saves the result."""
        if not self.is_open or not self._is_training():
            return False
        requested = any(number <= last_request for number in self._requests)
        return requested or (self._waiting > 0 and self._seconds_to_credit() == 0)

    def _hold(self, thread: int, costs: bool) -> None:
        self._holder, self._depth, self._costs, self._acquired_at = thread, 1, costs, self._clock()

    def release(self) -> None:
        """Release the lock.

        Raises:
            RuntimeError: The calling thread does not hold the lock.
        """
        with self._changed:
            if self._holder != threading.get_ident():
                raise RuntimeError("the training lock is not held by this thread")
            self._depth -= 1
            if self._depth:
                return
            self._held.seconds = self._clock() - self._acquired_at
            if self.is_open and self._holder != self._trainer and self._costs:
                self._seconds_to_credit()
                self._credit -= self._held.seconds
                if self._credited_at < self._moves_until:
                    self._credit = max(self._credit, -MAX_MOVING_DEBT_SECONDS)
            self._holder = None
            self._changed.notify_all()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exception: Any) -> None:
        self.release()

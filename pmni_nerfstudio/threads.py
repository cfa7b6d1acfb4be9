# SPDX-License-Identifier: Apache-2.0
"""Limits on torch's CPU threads for work that consists of many small kernels."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from nerfstudio.utils.rich_utils import CONSOLE
from threadpoolctl import threadpool_limits

MAX_THREADS = 4
"""Threads of a training on a CPU; its kernels are too small for many."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch and the BLAS library of NumPy and SciPy on a single thread within the block.

    With hundreds of small operations, threads spend more time on synchronization than on work, and far more on a busy
    machine: a registration of 10 s took 87 s.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


def limit_threads() -> None:
    """Let torch use few threads from now on: `MAX_THREADS` at most if they sleep while they wait, one otherwise.

    A training step consists of about a hundred small kernels. By default, OpenMP threads spin between them; if another
    program needs the same cores, each barrier waits for a thread that is not scheduled: steps of 25 ms took 400 to
    2,000 ms on two cores. A single thread took 34 ms.
    """
    torch.set_num_threads(min(torch.get_num_threads(), MAX_THREADS) if waiting_threads_sleep() else 1)
    CONSOLE.log(f"CPU threads: {torch.get_num_threads()}.")


@cache
def waiting_threads_sleep() -> bool:
    """Make this process's waiting OpenMP threads sleep where that is possible; whether they do.

    OMP_WAIT_POLICY=passive is not enough, because it is read when torch is loaded, which nerfstudio does before it imports
    this package. GNU's libgomp also shortens the spinning while it manages more threads than there are cores, counted over
    the pools of all threads that have entered a parallel region (`gomp_managed_threads` and `gomp_throttled_spin_count_var`
    in its sources, GCC 4.4 to 15). One idle thread with a pool of that size is enough. Other OpenMP libraries have no such
    rule.
    """
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        return True
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ or not _gnu_openmp_is_loaded():
        return False
    threads = torch.get_num_threads()
    ready = threading.Event()

    def hold_a_pool() -> None:
        torch.set_num_threads((os.cpu_count() or 1) + 1)
        torch.zeros(1 << 20).add_(1)  # a parallel region
        ready.set()
        threading.Event().wait()

    threading.Thread(target=hold_a_pool, name="idle OpenMP threads", daemon=True).start()
    ready.wait()
    torch.set_num_threads(threads)
    return True


def _gnu_openmp_is_loaded() -> bool:
    """Whether libgomp is the only OpenMP library of this process."""
    maps = Path("/proc/self/maps")
    libraries = maps.read_text() if maps.is_file() else ""
    return "libgomp" in libraries and "libomp" not in libraries and "libiomp" not in libraries

# SPDX-License-Identifier: Apache-2.0
"""Limits on torch's CPU threads for work that consists of many small kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from nerfstudio.utils.rich_utils import CONSOLE


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on a single thread within the block; other libraries keep all cores.

    With hundreds of small operations, threads spend more time on synchronization than on work, and far more on a busy
    machine: a registration of 10 s took 87 s.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def limit_threads() -> None:
    """Run torch on a single thread from now on, unless OMP_WAIT_POLICY=passive lets waiting OpenMP threads sleep.

    A training step consists of about a hundred small kernels. By default, OpenMP threads spin between them; if another
    program needs the same cores, each barrier waits for a thread that is not scheduled: steps of 25 ms took 400 to
    2,000 ms on two cores. A single thread takes 34 ms regardless. The policy is read when torch is loaded and therefore
    cannot be set here.
    """
    if os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        torch.set_num_threads(1)
    CONSOLE.log(f"CPU threads: {torch.get_num_threads()} (set OMP_WAIT_POLICY=passive to use all cores).")

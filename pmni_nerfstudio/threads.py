# SPDX-License-Identifier: Apache-2.0
"""Work whose kernels are too small for torch's threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from nerfstudio.utils.rich_utils import CONSOLE


@contextmanager
def one_thread() -> Iterator[None]:
    """Work on one thread of torch: hundreds of small operations, whose threads wait for each other longer than they work,
    and without end on a machine that is busy with something else (a registration's 10 s became 87). Other libraries keep
    all cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def settle_threads() -> None:
    """One thread, unless OpenMP's threads are told to sleep while they wait (OMP_WAIT_POLICY=passive).

    A training step is some hundred small kernels. By default OpenMP's threads spin between them, and where another
    program wants the same cores each barrier waits for a thread that isn't running: steps of 25 ms took 400 to
    2,000 ms on two cores. One thread takes 34 ms whatever else runs. The policy is read when torch is loaded, so that
    it cannot be set from here.
    """
    if os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        torch.set_num_threads(1)
    CONSOLE.log(f"CPU threads: {torch.get_num_threads()} (all cores with OMP_WAIT_POLICY=passive in the environment).")

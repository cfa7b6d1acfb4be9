# SPDX-License-Identifier: Apache-2.0
"""Work whose kernels are too small for torch's threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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

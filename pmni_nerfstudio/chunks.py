# SPDX-License-Identifier: Apache-2.0
"""Number of points or rays processed at once, limited by a memory bound and reduced when the GPU runs out of memory."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from rich.console import Console
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pmni_nerfstudio.errors import PmniError

Unit = Literal["points", "rays"]
SMALLEST: dict[Unit, int] = {"points": 1 << 10, "rays": 1 << 8}
"""Smallest chunk sizes tried; below them, the fixed memory of a computation dominates."""

_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_PROBES = (1 << 10, 3 << 10)

T = TypeVar("T")


def parse_memory(text: str | None) -> int | None:
    """Parse a memory size such as "2G", "1.5G", "500M", "64K" or "1000000" to bytes (K is 1024); None stays None.

    Raises:
        PmniError: the text is not a memory size, or zero.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)I?B?", text.strip().upper())
    size = int(float(found[1]) * _SUFFIXES[found[2]]) if found and len(found[1]) < 20 else 0
    if size == 0:
        raise PmniError(f"max-memory: {text} is not a memory size; give bytes, or a size such as 2G, 500M or 64K")
    return size


@dataclass
class Chunks:
    """Chunk size that is reduced when memory runs out and never grows again."""

    size: int
    """Number of points or rays in a chunk."""
    unit: Unit
    """Kind of elements, for messages and the smallest size."""

    def run(self, compute: Callable[[int], T]) -> T:
        """Call a function with the chunk size; if the GPU runs out of memory, halve the size and call it again.

        Raises:
            PmniError: memory runs out even with the smallest chunk.
        """
        while True:
            try:
                return compute(self.size)
            except torch.cuda.OutOfMemoryError as error:
                if self.size <= SMALLEST[self.unit]:
                    raise PmniError(
                        f"out of GPU memory even with {self.size:,} {self.unit} at once; stop other programs that "
                        "use the GPU (nvidia-smi lists them), or use --device cpu"
                    ) from error
            # Outside the except block: the traceback of the error keeps the tensors alive.
            torch.cuda.empty_cache()
            self.size = max(SMALLEST[self.unit], self.size // 2)
            Console(stderr=True).print(
                f"Out of GPU memory: continuing with {self.size:,} {self.unit} at once.", highlight=False
            )


def chunks_within(
    limit: int | None, most: int, unit: Unit, use: Callable[[int], object], host_bytes: int = 0
) -> Chunks:
    """Chunks whose tensors fit a memory limit, extrapolated linearly from two small trial runs.

    Args:
        limit: bytes available to one chunk in addition to what is loaded; None: no limit, and no trial runs.
        most: chunk size without a limit.
        unit: kind of elements.
        use: processes the given number of elements, the most expensive ones.
        host_bytes: memory per element outside of tensors.

    Raises:
        PmniError: the smallest chunk exceeds the limit.
    """
    if limit is None:
        return Chunks(most, unit)
    small, large = (peak_bytes(lambda: use(count)) for count in _PROBES)
    each = (large - small) / (_PROBES[1] - _PROBES[0])
    fixed = max(0.0, small - each * _PROBES[0])
    each += host_bytes
    size = min(most, int((limit - fixed) / each))
    if size < SMALLEST[unit]:
        needed = fixed + each * SMALLEST[unit]
        raise PmniError(
            f"max-memory: {limit / (1 << 20):.3g} MB are too few for {SMALLEST[unit]:,} {unit} at once; give at least "
            f"{int(needed / (1 << 20)) + 1}M"
        )
    return Chunks(size, unit)


def peak_bytes(compute: Callable[[], object]) -> int:
    """Peak memory, in bytes, of the tensors that a function creates; workspace inside of kernels is not included."""
    with _TensorMemory() as memory:
        compute()
    return memory.peak


class _TensorMemory(TorchDispatchMode):
    """Tracks the storage of each tensor created by an operator until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in tree_iter((args, kwargs)):
            self._track(value, is_new=False)
        out = func(*args, **kwargs)
        for value in tree_iter(out):
            self._track(value, is_new=True)
        return out

    def _track(self, value: object, is_new: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if is_new else 0
        if key not in self._known:
            self._known.add(key)
            self.current += size
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.current -= size

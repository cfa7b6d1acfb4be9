# SPDX-License-Identifier: Apache-2.0
"""How many points or rays are worked on at once: as many as a bound on memory allows, and fewer where a GPU's runs out."""

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
"""Fewer are not tried: what is left then is what a chunk takes whatever its size."""

_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_PROBES = (1 << 10, 3 << 10)

T = TypeVar("T")


def parse_memory(said: str | None) -> int | None:
    """Bytes of "2G", "1.5G", "500M", "64K" or "1000000" (K is 1024); None of None.

    Raises:
        PmniError: it is none of these, or nothing.
    """
    if said is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)I?B?", said.strip().upper())
    size = int(float(found[1]) * _SUFFIXES[found[2]]) if found and len(found[1]) < 20 else 0
    if size == 0:
        raise PmniError(f"max-memory: {said} is no amount of memory: give bytes, or as 2G, 500M, 64K")
    return size


@dataclass
class Chunks:
    """The size of chunks, which shrinks and never grows again."""

    size: int
    unit: Unit

    def run(self, compute: Callable[[int], T]) -> T:
        """What a function makes of a chunk size. Where the GPU's memory runs out it is called again with half of it.

        Raises:
            PmniError: the memory runs out even with the smallest chunk.
        """
        while True:
            try:
                return compute(self.size)
            except torch.cuda.OutOfMemoryError as error:
                if self.size <= SMALLEST[self.unit]:
                    raise PmniError(
                        f"the GPU's memory runs out even with {self.size:,} {self.unit} at once: free some of it "
                        "(nvidia-smi names who has it), or compute with --device cpu"
                    ) from error
            # Here and not above: while the error is at hand its traceback holds the tensors that are in the way.
            torch.cuda.empty_cache()
            self.size = max(SMALLEST[self.unit], self.size // 2)
            Console(stderr=True).print(
                f"The GPU's memory ran out: going on with {self.size:,} {self.unit} at once.", highlight=False
            )


def chunks_within(
    limit: int | None, most: int, unit: Unit, use: Callable[[int], object], host_bytes: int = 0
) -> Chunks:
    """Chunks whose tensors take no more than a limit, as far as a trial of two small ones tells.

    Args:
        limit: bytes for one chunk, beside what is loaded; None: no bound, and no trial.
        most: the size without a bound.
        unit: of what.
        use: works on so many, the costliest there are.
        host_bytes: of each beside tensors.

    Raises:
        PmniError: the smallest chunk would take more.
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
            f"max-memory: {limit / (1 << 20):.3g} MB don't hold {SMALLEST[unit]:,} {unit} at once: give "
            f"{int(needed / (1 << 20)) + 1}M or more"
        )
    return Chunks(size, unit)


def peak_bytes(compute: Callable[[], object]) -> int:
    """Most bytes of new tensors that are alive at once while a function runs; what kernels take inside is not seen."""
    with _Alive() as alive:
        compute()
    return alive.most


class _Alive(TorchDispatchMode):
    """Follows the memory of every tensor that PyTorch's operators make until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in tree_iter((args, kwargs)):
            self._meet(value, is_new=False)
        out = func(*args, **kwargs)
        for value in tree_iter(out):
            self._meet(value, is_new=True)
        return out

    def _meet(self, value: object, is_new: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if is_new else 0
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

# SPDX-License-Identifier: Apache-2.0
"""The allocator keeps the memory of freed arrays, and leaves settings of the user alone."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from pmni_nerfstudio.allocator import keep_freed_memory

PROGRAM = """
import resource, sys
import numpy as np
from pmni_nerfstudio.allocator import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
arrays = [np.ones(1_500_000) for _ in range(3)]
del arrays
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    arrays = [np.ones(1_500_000) for _ in range(3)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")


def page_faults(*words: str) -> int:
    """Page faults of a program that allocates and frees the same arrays again and again."""
    return int(
        subprocess.run([sys.executable, "-c", PROGRAM, *words], check=True, capture_output=True, text=True).stdout
    )


@needs_glibc
def test_freed_arrays_are_used_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    assert page_faults("keep") < 0.1 * page_faults()


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_of_the_user_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "1")
    assert not keep_freed_memory()

# SPDX-License-Identifier: Apache-2.0
"""Settings of the C library's memory allocator for work with many large temporary arrays."""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt (malloc.h)."""
_KEPT_BYTES = 1 << 30
"""Free memory at the end of the heap that is kept."""
_LARGEST_KEPT_BYTES = 32 << 20
"""Size from which on an array gets pages of its own, which go back to the system when it is freed; glibc's maximum."""
_USER_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let the process reuse the memory of freed arrays instead of returning it to the system at once.

    NumPy and torch on the CPU allocate every temporary array anew. By default, glibc returns those of more than some
    megabytes to the system when they are freed, and each next one is mapped and zeroed page by page again: a fifth of the
    CPU time of the alternation of poses and surfaces. Peak memory grew by 2 to 6% there.

    Returns:
        Whether the settings were made: not without glibc, and not where the environment has settings of its own.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _USER_SETTINGS):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES))

# SPDX-License-Identifier: Apache-2.0
"""Checks of options that several commands have."""

from __future__ import annotations

from pmni_nerfstudio.errors import PmniError

_RESOLUTIONS = (8, 8192)
"""Marching cubes cells per axis: fewer make no mesh, more no file that other programs open."""


def check_resolution(resolution: int) -> None:
    """Check a number of marching cubes cells per axis.

    Raises:
        PmniError: it is too small or too large.
    """
    least, most = _RESOLUTIONS
    if resolution < least:
        raise PmniError(f"resolution: {resolution} is too coarse for a mesh; give {least} or more")
    if resolution > most:
        raise PmniError(f"resolution: {resolution} is too fine; give {most} or less")


def check_seed(seed: int) -> None:
    """Check that a seed is in NumPy's range.

    Raises:
        PmniError: it is not.
    """
    if not 0 <= seed < 2**32:
        raise PmniError(f"seed: {seed} is out of range; give a number from 0 to {2**32 - 1}")

# SPDX-License-Identifier: Apache-2.0
"""A shorter start of nerfstudio's programs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import FrameType, SimpleNamespace
from typing import List, Optional

from nerfstudio.configs import external_methods


@dataclass(frozen=True)
class CallerName:
    """Name of a calling function, the only part of an `inspect.stack()` entry that nerfstudio reads."""

    function: str


def caller_names() -> List[CallerName]:
    """Names of the functions on the stack, beginning with the caller of this one, without their source lines."""
    names: List[CallerName] = []
    frame: Optional[FrameType] = sys._getframe(1)
    while frame is not None:
        names.append(CallerName(frame.f_code.co_name))
        frame = frame.f_back
    return names


def skip_source_lines() -> None:
    """Keep nerfstudio from reading source files while it lists the methods that are not installed.

    For each of 26 such methods, nerfstudio 1.1.5 looks up the name of a calling function by `inspect.stack()`, which
    searches all loaded modules for the source line of each frame: 2.3 of the 11 seconds that `ns-train` took before it
    read its command line. The list is made after this package has been imported. Other uses of `inspect` stay.
    """
    if hasattr(external_methods, "inspect"):
        setattr(external_methods, "inspect", SimpleNamespace(stack=caller_names))

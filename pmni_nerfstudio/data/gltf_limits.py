# SPDX-License-Identifier: Apache-2.0
"""Size that a glTF file declares, checked before it is loaded.

An accessor without data stands for zeros, so that a file of some hundred bytes can ask for any amount of memory. Other mesh
formats hold all that they declare; their readers fail at the end of the file.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from pmni_nerfstudio.data.files import read_bytes

MAX_VALUES = 1 << 29
"""Largest number of values of all accessors: 2 GB in single precision."""
_SHAPES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}


def check_gltf_size(path: Path) -> None:
    """Check how many values a .gltf or .glb file declares. Files that are no glTF are left to the reader.

    Raises:
        ValueError: there are too many, or the file is damaged.
    """
    content = read_bytes(path)
    if content[:4] == b"glTF":
        if len(content) < 20:
            raise ValueError("the file is truncated")
        (length,) = struct.unpack("<I", content[12:16])
        content = content[20 : 20 + length]
    tree = json.loads(content)
    accessors = tree.get("accessors", []) if isinstance(tree, dict) else []
    total = sum(int(a["count"]) * _SHAPES[a["type"]] for a in accessors)
    if total > MAX_VALUES:
        raise ValueError(f"it declares {total:,} values, at most {MAX_VALUES:,} are allowed")

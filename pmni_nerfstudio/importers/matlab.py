# SPDX-License-Identifier: Apache-2.0
"""Arrays of numbers from MATLAB's files of version 5 to 7 (The MathWorks, "MAT-File Format").

Own code, since scipy's reader takes the whole process down on some damaged files, and unpacks whatever they say.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.files import check_file, reason
from pmni_nerfstudio.errors import SceneError

_MAX_BYTES = 1 << 30
"""Of a file, and of an array once unpacked."""
_HEADER = 128
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_NUMERIC_CLASSES = range(6, 16)
_IS_COMPLEX = 0x0800


def read_mat(path: Path) -> dict[str, np.ndarray]:
    """All real arrays of numbers in a file, float64; what else it holds is passed over.

    Raises:
        SceneError: the file is missing, broken, absurdly large or of version 7.3.
    """
    check_file(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        data = path.read_bytes()
        if len(data) < _HEADER or data[:4] == b"\x89HDF" or data[124] == 0 and data[125] == 2:
            raise ValueError("it is of version 7.3")
        order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
        if order is None:
            raise ValueError("it has no header")
        arrays = {}
        for kind, content in _elements(data[_HEADER:], order):
            if kind == _COMPRESSED:
                unpacker = zlib.decompressobj()
                unpacked = unpacker.decompress(content, _MAX_BYTES)
                if not unpacker.eof:
                    raise ValueError("it is cut short, or an array is too large")
                kind, content = next(_elements(unpacked, order))  # noqa: PLW2901
            if kind == _MATRIX:
                arrays.update(_array(content, order))
        return arrays
    except (OSError, ValueError, IndexError, StopIteration, struct.error, zlib.error) as error:
        raise SceneError(
            f"{path}: can't be read as a MATLAB file ({reason(error)}): save it again, as version 7"
        ) from error


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of one data element after the other."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if kind >> 16:  # up to four bytes are within the tag
            kind, size, start, end = kind & 0xFFFF, kind >> 16, place + 4, place + 8
            if size > 4:
                raise ValueError("it is damaged")
        else:
            start = place + 8
            end = start + size + (-size % 8 if kind != _COMPRESSED else 0)
        if start + size > len(data):
            raise ValueError("it is cut short")
        yield kind, data[start : start + size]
        place = end


def _array(content: bytes, order: str) -> dict[str, np.ndarray]:
    """The array of a matrix element by its name, or nothing if it isn't one of real numbers."""
    parts = _elements(content, order)
    flags = struct.unpack_from(f"{order}I", next(parts)[1])[0]
    shape = np.frombuffer(next(parts)[1], f"{order}i4")
    name = next(parts)[1].decode("latin-1")
    if flags & 0xFF not in _NUMERIC_CLASSES or flags & _IS_COMPLEX:
        return {}
    kind, values = next(parts)
    if kind not in _TYPES:
        raise ValueError(f"{name} is of the unknown type {kind}")
    numbers = np.frombuffer(values, order + _TYPES[kind])
    if (shape < 0).any() or not 1 <= len(shape) <= 8 or np.prod(shape, dtype=np.float64) != len(numbers):
        raise ValueError(f"{name} has {len(numbers)} numbers for the shape {tuple(shape)}")
    return {name: numbers.reshape(shape, order="F").astype(np.float64)}

# SPDX-License-Identifier: Apache-2.0
"""Numeric arrays from MATLAB files, versions 5 to 7 (The MathWorks, "MAT-File Format").

scipy.io.loadmat is not used: version 1.17.1 crashes the process with a segmentation fault on about 1 of 100 randomly
damaged files, and it decompresses any amount of data.
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
"""Largest file, and largest array after decompression."""
_HEADER_BYTES = 128
_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
"""Types of data elements."""
_NUMERIC_CLASSES = range(6, 16)
_IS_COMPLEX = 0x0800


def read_mat(path: Path) -> dict[str, np.ndarray]:
    """All real numeric arrays of a file by name, as float64; everything else in the file is ignored.

    Raises:
        SceneError: The file is missing, damaged, larger than 1 GiB, or of version 7.3.
    """
    check_file(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        data = path.read_bytes()
        if data[:4] == b"\x89HDF" or data[124:126] == b"\0\2":
            raise ValueError("it has version 7.3, which is HDF5")
        order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER_BYTES])
        if order is None:
            raise ValueError("it has no header")
        arrays = {}
        for kind, content in _elements(data[_HEADER_BYTES:], order):
            if kind == _COMPRESSED:
                decompressor = zlib.decompressobj()
                decompressed = decompressor.decompress(content, _MAX_BYTES)
                if not decompressor.eof:
                    raise ValueError("it is truncated, or an array is too large")
                kind, content = next(_elements(decompressed, order))  # noqa: PLW2901
            if kind == _MATRIX:
                arrays.update(_numeric_array(content, order))
        return arrays
    except (OSError, ValueError, IndexError, StopIteration, struct.error, zlib.error) as error:
        raise SceneError(
            f"{path}: can't be read as a MATLAB file ({reason(error)}); save it again with the option -v7"
        ) from error


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of each data element."""
    position = 0
    while position + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        if kind >> 16:  # the small format: up to four bytes of content within the tag
            kind, size, start, end = kind & 0xFFFF, kind >> 16, position + 4, position + 8
            if size > 4:
                raise ValueError("it is damaged")
        else:
            start = position + 8
            end = start + size + (-size % 8 if kind != _COMPRESSED else 0)
        if start + size > len(data):
            raise ValueError("it is truncated")
        yield kind, data[start : start + size]
        position = end


def _numeric_array(content: bytes, order: str) -> dict[str, np.ndarray]:
    """Array of a matrix element by name; empty if the element is not a real numeric array."""
    parts = _elements(content, order)
    flags = struct.unpack_from(f"{order}I", next(parts)[1])[0]
    shape = np.frombuffer(next(parts)[1], f"{order}i4")
    name = next(parts)[1].decode("latin-1")
    if flags & 0xFF not in _NUMERIC_CLASSES or flags & _IS_COMPLEX:
        return {}
    kind, values = next(parts)
    if kind not in _DTYPES:
        raise ValueError(f"{name} has the unknown type {kind}")
    numbers = np.frombuffer(values, order + _DTYPES[kind])
    if (shape < 0).any() or not 1 <= len(shape) <= 8 or np.prod(shape, dtype=np.float64) != len(numbers):
        raise ValueError(f"{name} has {len(numbers)} numbers for the shape {tuple(shape)}")
    return {name: numbers.reshape(shape, order="F").astype(np.float64)}

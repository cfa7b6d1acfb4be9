# SPDX-License-Identifier: Apache-2.0
"""Files of some hundred bytes that declare gigabytes are refused by their headers, before any memory is taken."""

from __future__ import annotations

import io
import json
import resource
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import OpenEXR
import pytest

from pmni_nerfstudio.data import exr_channels
from pmni_nerfstudio.data.images import read_normals
from pmni_nerfstudio.data.npz import read_npz
from pmni_nerfstudio.data.result_files import read_mesh
from pmni_nerfstudio.errors import PmniError

LARGE = 30_000
"""Side of a square image of 10 GB as three floats."""


def npy_header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue() + bytes(64)


def write_npz_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy_header((50_000, 50_000)))


def write_png_bomb(path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", LARGE, LARGE, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def write_tiff_bomb(path: Path) -> None:
    """Three floats a pixel, which Pillow does not read, so that its own limit does not apply."""
    numbers = {256: LARGE, 257: LARGE, 258: 32, 259: 1, 262: 2, 273: 8, 277: 3, 278: LARGE, 279: 100, 339: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in numbers.items())
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(numbers)) + entries + bytes(204))


def write_gltf_bomb(path: Path) -> None:
    """A billion vertices of zeros, for which the file needs no data."""
    accessors = [
        {"componentType": 5126, "count": 1_000_000_000, "type": "VEC3"},
        {"componentType": 5125, "count": 3, "type": "SCALAR", "bufferView": 0},
    ]
    tree = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": accessors,
        "bufferViews": [{"buffer": 0, "byteLength": 12, "byteOffset": 0}],
        "buffers": [{"byteLength": 12}],
    }
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", 12, b"BIN\0") + bytes(12)
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)


def write_ply_bomb(path: Path) -> None:
    lines = ("ply", "format binary_little_endian 1.0", "element vertex 4000000000", "property float x")
    path.write_bytes("\n".join((*lines, "property float y", "property float z", "end_header\n")).encode() + bytes(100))


def npz(path: Path) -> object:
    return read_npz(path, lambda name: True, 1 << 29)


@pytest.mark.parametrize(
    ("name", "write", "read", "message"),
    [
        ("a.npz", write_npz_bomb, npz, "a.npy has 10,000,000,000 bytes, at most"),
        ("a.npy", lambda p: p.write_bytes(npy_header((LARGE, LARGE, 3))), read_normals, "can't be read"),
        ("a.png", write_png_bomb, read_normals, "according to its header"),
        ("a.tif", write_tiff_bomb, read_normals, "has 30000x30000 pixels according to its header"),
        ("a.glb", write_gltf_bomb, read_mesh, "declares 3,000,000,003 values"),
        ("a.ply", write_ply_bomb, read_mesh, "can't be read as a mesh"),
    ],
)
def test_bombs_take_no_memory(
    tmp_path: Path, name: str, write: Callable[[Path], object], read: Callable[[Path], object], message: str
):
    write(tmp_path / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PmniError, match=message) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_exr_files_with_too_many_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    channels = {f"layer{i}.{axis}": np.zeros((10, 10), np.float32) for i in range(4) for axis in "XYZ"}
    OpenEXR.File({"type": OpenEXR.scanlineimage}, channels).write(str(tmp_path / "a.exr"))
    exr_channels.read_channels(tmp_path / "a.exr")
    monkeypatch.setattr(exr_channels, "_MAX_VALUES", 1000)
    with pytest.raises(PmniError, match="has 1,200 values in all channels, at most 1,000"):
        exr_channels.read_channels(tmp_path / "a.exr")

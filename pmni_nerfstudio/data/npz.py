# SPDX-License-Identifier: Apache-2.0
"""Safe reading and atomic writing of .npz archives: bounded memory, no pickles."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.npyio import NpzFile

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.files import check_file, reason
from pmni_nerfstudio.errors import SceneError

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

_MAGIC = b"\x93NUMPY"


def read_npz(path: Path, selected: Callable[[str], object], max_bytes: int) -> dict[str, np.ndarray]:
    """Read selected arrays of an archive.

    Args:
        path: .npz file.
        selected: whether to read the array of a name.
        max_bytes: largest permitted size of an unpacked array; compressed, it may be a thousand times smaller.

    Raises:
        SceneError: the file is missing or broken, contains pickled objects, or an array is too large.
    """
    check_file(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, NpzFile):
            raise ValueError("not an archive of arrays")
        with loaded as file:
            for member in file.zip.infolist() if file.zip is not None else []:
                if not selected(member.filename.removesuffix(".npy")):
                    continue
                size = max(member.file_size, _declared_bytes(file, member.filename))
                if size > max_bytes:
                    raise ValueError(f"{member.filename} has {size:,} bytes, at most {max_bytes:,} are allowed")
            arrays = {name: file[name] for name in file.files if selected(name)}
        invalid = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
        if invalid:  # numpy returns the bytes of members without an array header
            raise ValueError(f"{invalid[0]} is not an array")
        return arrays
    except Exception as error:  # zipfile, its decompressors and numpy's header parser raise errors of many types
        raise SceneError(f"{path}: can't be read ({reason(error)}); write it again with numpy.savez") from error


def _declared_bytes(file: NpzFile, name: str) -> int:
    """Size of an array as its header declares it, for which NumPy takes memory before it reads; 0 if there is no header."""
    assert file.zip is not None
    with file.zip.open(name) as member:
        if member.read(len(_MAGIC)) != _MAGIC:
            return 0
        major = member.read(2)[0]
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(member)
        return math.prod(shape) * dtype.itemsize


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an archive of arrays atomically.

    Raises:
        PmniError: writing fails.
    """
    # In memory first: on a full disk, zipfile fails a second time when it is deleted, and prints that traceback.
    archive = io.BytesIO()
    np.savez(archive, **arrays)
    with atomic_path(path) as temporary:
        temporary.write_bytes(archive.getbuffer())


def hash_array(digest: Hash, array: np.ndarray) -> None:
    """Add an array's shape, type and values to a digest of `hashlib`, which identifies stored results."""
    digest.update(f"{array.shape} {array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())

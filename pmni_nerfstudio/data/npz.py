# SPDX-License-Identifier: Apache-2.0
"""Arrays in .npz archives, with bounds on what a file may ask for; nothing in one is ever executed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.files import check_file, reason
from pmni_nerfstudio.errors import SceneError


def read_npz(path: Path, wanted: Callable[[str], object], max_bytes: int) -> dict[str, np.ndarray]:
    """Read the arrays whose names are wanted.

    Args:
        path: of the archive.
        wanted: of a name.
        max_bytes: of an array once unpacked: a thousandth of that on the disk can hold as much.

    Raises:
        SceneError: the file is missing or broken, holds pickled objects, or an array is larger than that.
    """
    check_file(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, NpzFile):
            raise ValueError("it is no archive of arrays")
        with loaded as file:
            for member in file.zip.infolist() if file.zip is not None else []:
                if wanted(member.filename.removesuffix(".npy")) and member.file_size > max_bytes:
                    raise ValueError(f"{member.filename} has {member.file_size:,} bytes of at most {max_bytes:,}")
            arrays = {name: file[name] for name in file.files if wanted(name)}
        strange = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
        if strange:  # numpy gives the bytes of what doesn't begin like an array
            raise ValueError(f"{strange[0]} is no array")
        return arrays
    except Exception as error:  # zipfile, its decompressors and numpy's header parser raise whatever they meet
        raise SceneError(f"{path}: can't be read ({reason(error)}): write it again with numpy.savez") from error


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays, atomically.

    Raises:
        PmniError: the system refuses to write.
    """
    # In memory first: zipfile on a full disk fails a second time when it is deleted, and prints a traceback of that.
    archive = io.BytesIO()
    np.savez(archive, **arrays)
    with atomic_path(path) as temporary:
        temporary.write_bytes(archive.getbuffer())

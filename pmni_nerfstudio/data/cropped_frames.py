# SPDX-License-Identifier: Apache-2.0
"""Record that the maps of a scene are parts of larger frames, whose principal points may lie far outside of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from pmni_nerfstudio.data.npz import read_npz, write_npz
from pmni_nerfstudio.errors import SceneError

CROPPED = "cropped.npz"
"""File in the scene folder: `corner`, first column and row of each view's part, and `size`, width and height of its frame."""
_MAX_BYTES = 1 << 20


def write_cropped(root: Path, corner: Int[np.ndarray, "n 2"], width: int, height: int) -> None:
    """Record the parts of frames of one size that the maps of a scene are.

    Args:
        root: folder of the scene.
        corner: first column and row of each view's part.
        width: of the frames.
        height: of the frames.
    """
    size = np.tile(np.array([width, height], dtype=np.int64), (len(corner), 1))
    write_npz(root / CROPPED, {"corner": corner.astype(np.int64), "size": size})


def whole_frames(
    root: Path, K: Float[np.ndarray, "n 3 3"], sizes: Int[np.ndarray, "n 2"] | None
) -> tuple[Float[np.ndarray, "n 3 3"], Int[np.ndarray, "n 2"] | None]:
    """Intrinsics and sizes of the frames that the maps of a scene are parts of; the given ones if they are whole.

    Raises:
        SceneError: the record is invalid.
    """
    path = root / CROPPED
    if not path.is_file():
        return K, sizes
    arrays = read_npz(path, ("corner", "size").__contains__, _MAX_BYTES)
    corner, size = arrays.get("corner"), arrays.get("size")
    for array in (corner, size):
        if array is None or array.shape != (len(K), 2) or array.dtype.kind != "i":
            raise SceneError(
                f"{path}: does not hold corner and size of {len(K)} views; remove it if the maps are whole"
            )
    assert corner is not None
    whole = K.copy()
    whole[:, :2, 2] += corner
    return whole, size

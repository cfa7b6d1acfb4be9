# SPDX-License-Identifier: Apache-2.0
"""Normal maps of COLMAP's dense stereo: stereo/normal_maps/IMAGE.geometric.bin, beside the model of undistorted images.

A file is a text header, "width&height&channels&", and float32 values, little-endian, channel by channel and row by row
(COLMAP's src/colmap/mvs/mat.h); pycolmap's NormalMap.to_array returns them in another order. Normals have OpenCV camera
axes and are zero where the geometric check removed them.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.files import check_pixels, read_bytes
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.importers.file_matching import without_suffix

SUFFIX = ".bin"
KINDS = ("geometric", "photometric")
"""Maps after and before the check of consistency between views; the first ones found are read."""
_FOLDER = Path("stereo") / "normal_maps"


def read_stereo_normals(path: Path) -> np.ndarray:
    """Normals (H, W, 3) float32 in OpenCV camera axes, zero where there is none.

    Raises:
        SceneError: The file is broken, or is a depth map.
    """
    content = read_bytes(path)
    header = re.match(rb"(\d{1,6})&(\d{1,6})&(\d{1,3})&", content)
    if header is None:
        raise SceneError(f"{path}: is not a map of COLMAP's dense stereo; run patch_match_stereo again")
    width, height, channels = (int(part) for part in header.groups())
    check_pixels(path, width, height)
    if channels != 3:
        raise SceneError(f"{path}: has {channels} channels and not 3; give normal_maps and not depth_maps")
    if len(content) - header.end() != 4 * channels * width * height:
        raise SceneError(f"{path}: is truncated or damaged; run patch_match_stereo again")
    values = np.frombuffer(content, "<f4", channels * width * height, header.end())
    return np.ascontiguousarray(np.moveaxis(values.reshape(channels, height, width), 0, -1), dtype=np.float32)


def find_stereo_normals(workspace: Path) -> tuple[dict[str, Path], str]:
    """Normal maps of a dense workspace by the image's path without suffix, and their kind; empty if there are none."""
    folder = workspace / _FOLDER
    for kind in KINDS:
        ending = f".{kind}{SUFFIX}"
        files = {
            without_suffix(path.relative_to(folder).as_posix().removesuffix(ending)): path
            for path in sorted(folder.rglob(f"*{ending}"))
            if path.is_file()
        }
        if files:
            return files, kind
    return {}, ""

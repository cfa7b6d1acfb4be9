# SPDX-License-Identifier: Apache-2.0
"""cameras.json of 3D Gaussian Splatting (graphdeco-inria/gaussian-splatting, utils/camera_utils.py), with normal maps.

A list of cameras with img_name, width, height, position (the center), rotation (camera to world, row by row, OpenCV camera
axes), fx and fy in pixels. The principal point is not stored: the program takes the middle of the image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pmni_nerfstudio.data.camera_files import LARGEST
from pmni_nerfstudio.data.files import printable, read_bytes, read_text, reason
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.importers.posed_images import PosedImage, attach_maps, check_camera, find_image, pinhole
from pmni_nerfstudio.importers.source import Format, ImportOptions, Source

_FILE = "cameras.json"
_HEAD_BYTES = 1 << 14
_REMEDY = "write it again with 3D Gaussian Splatting"


def recognize(folder: Path) -> bool:
    """Whether there is a cameras.json of this program."""
    path = folder / _FILE
    if not path.is_file():
        return False
    head = read_bytes(path, _HEAD_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    return head.startswith(b"[") and all(word in head for word in (b'"img_name"', b'"position"', b'"rotation"'))


def read(folder: Path, options: ImportOptions) -> Source:
    """Read all cameras."""
    path = folder / _FILE
    if not recognize(folder):
        raise SceneError(f"{path}: is missing, or is no list of cameras of 3D Gaussian Splatting")
    try:
        entries = json.loads(read_text(path))
        posed = [_posed(folder, path, entry) for entry in entries]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise SceneError(f"{path}: can't be read ({reason(error)}); {_REMEDY}") from error
    return attach_maps(folder, f"3D Gaussian Splatting's {_FILE}", posed, options)


def _posed(folder: Path, path: Path, entry: Mapping[str, Any]) -> PosedImage:
    name = printable(str(entry["img_name"]))
    size = (int(entry["width"]), int(entry["height"]))
    if not all(0 < side < LARGEST for side in size):
        raise SceneError(f"{path}: {name} has no pixels; {_REMEDY}")
    c2w = np.eye(4)
    c2w[:3, :3] = np.array(entry["rotation"], dtype=np.float64).reshape(3, 3)
    c2w[:3, 3] = np.array(entry["position"], dtype=np.float64).reshape(3)
    K = pinhole(float(entry["fx"]), float(entry["fy"]), size[0] / 2, size[1] / 2)
    check_camera(path, name, K, c2w)
    return PosedImage(name, K, size, c2w, image=find_image(folder, name))


GAUSSIAN_SPLATTING = Format(recognize, read)

# SPDX-License-Identifier: Apache-2.0
"""Normal maps of a sphere seen through a distorting lens, and a Metashape export of its cameras."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from helpers.importer_files import as_colors
from helpers.scenes import hit_sphere, irregular_ring
from pmni_nerfstudio.data.images import write_png

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


SIZE = (128, 104)


K = np.array([[150.0, 0, 65.2], [0, 152.0, 50.1], [0, 0, 1]])


LENSES = {
    "radial": ("OPENCV", [-0.3, 0.1, 0.0, 0.0]),
    "tangential": ("OPENCV", [0.05, 0.0, 0.02, -0.03]),
    "fisheye": ("OPENCV_FISHEYE", [0.1, -0.05, 0.0, 0.0]),
    "fisheye_without_coefficients": ("OPENCV_FISHEYE", [0.0, 0.0, 0.0, 0.0]),
}


NAMES = [f"{view:02d}" for view in range(6)]


def poses() -> np.ndarray:
    return irregular_ring(6, 3.0, np.random.default_rng(2))


def write_distorted(folder: Path, lens: tuple[str, list[float]]) -> None:
    """Write normal/ and mask/ of the sphere seen through a lens; OpenCV finds each pixel's ray."""
    x, y = np.meshgrid(np.arange(SIZE[0], dtype=float), np.arange(SIZE[1], dtype=float))
    pixels = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
    if lens[0] == "OPENCV_FISHEYE":
        straight = cv2.fisheye.undistortPoints(pixels, K, np.array(lens[1]))
    else:
        criteria = (cv2.TERM_CRITERIA_COUNT, 100, 0)
        straight = cv2.undistortPointsIter(pixels, K, np.array(lens[1]), np.eye(3), np.eye(3), criteria)
    rays = np.concatenate([straight.reshape(-1, 2), np.ones((x.size, 1))], axis=1)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    for kind in ("normal", "mask"):
        (folder / kind).mkdir(parents=True)
    for name, pose in zip(NAMES, poses()):
        distance, normals = hit_sphere(np.broadcast_to(pose[:3, 3], rays.shape), rays @ pose[:3, :3].T)
        mask = np.isfinite(distance).reshape(SIZE[::-1])
        stored = (normals @ pose[:3, :3] @ OPENGL[:3, :3]).reshape(*SIZE[::-1], 3)
        write_png(folder / "normal" / f"{name}.png", as_colors(np.nan_to_num(stored), mask))
        write_png(folder / "mask" / f"{name}.png", mask)


def write_metashape(file: Path, coefficients: dict[str, float], world: str = "") -> None:
    """Write a Metashape camera file; `world` has further elements of the chunk, such as those of component 0."""
    cameras = "".join(
        f'<camera id="{i}" sensor_id="0" component_id="0" label="{name}"><transform>{" ".join(map(str, pose.ravel()))}</transform></camera>'
        for i, (name, pose) in enumerate(zip(NAMES, poses()))
    )
    terms = {"f": 152.0, "b1": -2.0, "cx": 65.7 - SIZE[0] / 2, "cy": 50.6 - SIZE[1] / 2, **coefficients}
    calibration = "".join(f"<{name}>{value}</{name}>" for name, value in terms.items())
    file.write_text(
        '<?xml version="1.0"?><document version="2.0.0"><chunk label="c"><sensors><sensor id="0" type="frame">'
        f'<resolution width="{SIZE[0]}" height="{SIZE[1]}"/><calibration type="frame">{calibration}</calibration>'
        f'</sensor></sensors><cameras>{cameras}<camera id="9" sensor_id="0" label="lost"/></cameras>{world}</chunk></document>'
    )


WORLD = "<transform><rotation>0 -1 0 1 0 0 0 0 1</rotation><translation>{}</translation><scale>0.25</scale></transform>"

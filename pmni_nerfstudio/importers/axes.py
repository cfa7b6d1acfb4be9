# SPDX-License-Identifier: Apache-2.0
"""Axes of stored normals: the change to OpenCV camera axes, and an estimate from the maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pmni_nerfstudio.data.axes_check import sample_axes
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.transforms import OPENCV_FROM_DIRECTX, OPENCV_FROM_STORED
from pmni_nerfstudio.importers.source import Axes, Frame
from pmni_nerfstudio.importers.view_maps import load, map_intrinsics

AXES: dict[Axes, np.ndarray] = {
    "camera": OPENCV_FROM_STORED,
    "opencv": np.eye(3),
    "directx": OPENCV_FROM_DIRECTX,
}
"""Rotations or reflections (3, 3) from stored axes to OpenCV camera axes; those of world axes depend on the view."""
_SAMPLED_VIEWS = 6
"""Views from which the axes are estimated."""
_MIN_AXES_MARGIN = 0.2
"""Least difference of the scores at which axes other than the usual ones are chosen."""

LoadMaps = Callable[[Frame], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Normals (H, W, 3) of a frame in stored axes, its mask (H, W), and its intrinsics (3, 3) at their size."""


def load_maps(frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps of a frame at full size; see `LoadMaps`."""
    stored, mask, _ = load(frame)
    return stored, mask, map_intrinsics(frame, (mask.shape[1], mask.shape[0]))


def estimate_axes(frames: Sequence[Frame], maps_of: LoadMaps = load_maps) -> Axes:
    """Most probable axes of stored normals by the cues of `data.axes_check`; "camera" unless others are clearly better."""
    chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, _SAMPLED_VIEWS).round().astype(int))]
    candidates: tuple[Axes, ...] = ("camera", "opencv", "directx", "world")
    scores: dict[Axes, float] = {name: 0.0 for name in candidates if name != "world" or frames[0].c2w is not None}
    for frame in chosen:
        stored, mask, K = maps_of(frame)
        samples = sample_axes(stored, mask, K)
        del stored, mask  # before the next view is read
        for name in scores:
            matrix = camera_from_stored(frame, name)
            cues = samples.evidence(matrix, matrix)
            scores[name] += float(cues.facing[0] + cues.rim[0] + cues.integrability[0]) / len(chosen)
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > scores["camera"] + _MIN_AXES_MARGIN else "camera"


def camera_from_stored(frame: Frame, axes: Axes) -> np.ndarray:
    """Matrix (3, 3) from stored axes to the view's OpenCV camera axes."""
    if axes != "world":
        return AXES[axes]
    if frame.c2w is None:
        raise PmniError(f"{frame.normals}: world-space normals need poses; use camera-space normals")
    return frame.c2w[:3, :3].T

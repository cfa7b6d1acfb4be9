# SPDX-License-Identifier: Apache-2.0
"""Agreement of candidate cameras with the maps of a source, for a choice between readings of an ambiguous file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pmni_nerfstudio.geometry.cameras import strided_intrinsics
from pmni_nerfstudio.geometry.silhouette_coherence import Fit, evenly_spaced, measure_fit
from pmni_nerfstudio.importers.axes import camera_from_stored, estimate_axes
from pmni_nerfstudio.importers.source import Axes, Frame
from pmni_nerfstudio.importers.view_maps import load, map_intrinsics

_MAX_SIDE = 320
"""Maps with longer sides are subsampled."""


class CameraFit:
    """Maps of some of a source's frames, at reduced size, to which cameras are compared; distortion is ignored."""

    def __init__(self, axes: Axes | None) -> None:
        """`axes` of the stored normals; None to estimate them from the maps for each candidate."""
        self._axes: Axes | None = axes
        self._maps: dict[Path, tuple[np.ndarray, np.ndarray, tuple[int, int], int]] = {}

    def measure(self, frames: Sequence[Frame]) -> Fit:
        """Agreement of the frames' cameras with their maps; all need poses.

        Raises:
            PmniError: A map is broken.
        """
        chosen = [frames[i] for i in evenly_spaced(len(frames))]
        axes = self._axes or estimate_axes(chosen, self._maps_of)
        normals, masks, K = [], [], []
        for frame in chosen:
            stored, mask, k = self._maps_of(frame)
            normals.append(stored @ camera_from_stored(frame, axes).T.astype(np.float32))
            masks.append(mask)
            K.append(k)
        return measure_fit(masks, normals, np.stack(K), np.stack([f.c2w for f in chosen if f.c2w is not None]))

    def _maps_of(self, frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stored normals (h, w, 3), mask (h, w) and intrinsics (3, 3) of a frame at reduced size."""
        if frame.normals not in self._maps:
            stored, mask, _ = load(frame)
            step = max(1, -(-max(mask.shape) // _MAX_SIDE))
            size = (mask.shape[1], mask.shape[0])
            self._maps[frame.normals] = (stored[::step, ::step].copy(), mask[::step, ::step].copy(), size, step)
        stored, mask, size, step = self._maps[frame.normals]
        return stored, mask, strided_intrinsics(map_intrinsics(frame, size), step)

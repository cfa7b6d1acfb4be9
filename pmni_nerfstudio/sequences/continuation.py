# SPDX-License-Identifier: Apache-2.0
"""Initial signed distances of a frame, taken from the previous frame where the surface has not moved."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.ndimage import maximum_filter

from pmni_nerfstudio.registration.surface.sdf_grid import Surface

_BAND_VOXELS = 3.0
"""Half-width of the band about the surface in which distances are compared, in voxels."""
_NEIGHBORHOOD = 5
"""Edge in vertices of the cube whose largest difference determines the weight, so that no point of a moving part passes
because its distances happen to agree."""
_CUTOFF_VOXELS = 0.5
"""Difference in voxels from which on a surface counts as moved. Noise of the normals causes about a tenth of it."""


def continued(before: Float[np.ndarray, "n n n"], now: Surface) -> Float[np.ndarray, "n n n"]:
    """Signed distances to start a frame from.

    Near the surface, this is a weighted mean of the trained distances of the previous frame and of those integrated
    for this frame alone. The weight of the previous frame is Tukey's biweight of their difference: nearly one where
    they differ by noise, and zero where the surface has moved.

    Args:
        before: signed distances of the previous frame, on the grid of `now`.
        now: surface of this frame.
    """
    difference = np.abs(before - now.sdf) / now.voxel
    outside = np.abs(now.sdf) > _BAND_VOXELS * now.voxel
    difference[outside] = 0
    largest = maximum_filter(difference, _NEIGHBORHOOD)
    weight = np.maximum(1 - (largest / _CUTOFF_VOXELS) ** 2, 0) ** 2
    weight[outside] = 0
    return (now.sdf + weight * (before - now.sdf)).astype(np.float32)

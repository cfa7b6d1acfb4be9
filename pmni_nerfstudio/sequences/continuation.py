# SPDX-License-Identifier: Apache-2.0
"""Temporal prior on the signed distance: what the frame before found, where the surface did not move since."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.ndimage import maximum_filter

from pmni_nerfstudio.registration.surface.sdf_grid import Surface

_BAND_VOXELS = 3.0
"""Half-width of the band about the surface in which distances are compared, in voxels."""
_NEIGHBORHOOD = 5
"""Edge of the cube, in vertices, whose largest difference decides: a part that moved is left out as a whole."""
_CUTOFF_VOXELS = 0.5
"""Difference at which a surface has moved, in voxels. Surfaces integrated from noisy normals differ by a tenth of it."""


def continued(before: Float[np.ndarray, "n n n"], now: Surface) -> Float[np.ndarray, "n n n"]:
    """Signed distances to start a frame from.

    Near the surface, the trained distances of the frame before replace those integrated for this frame alone, with Tukey's
    biweight of their difference. A difference of the size of noise thus counts little; motion, which is larger, keeps nothing
    of the frame before.

    Args:
        before: signed distances of the frame before, on the grid of `now`.
        now: surface of this frame.
    """
    difference = np.abs(before - now.sdf) / now.voxel
    difference[np.abs(now.sdf) > _BAND_VOXELS * now.voxel] = 0
    largest = maximum_filter(difference, _NEIGHBORHOOD)
    weight = np.maximum(1 - (largest / _CUTOFF_VOXELS) ** 2, 0) ** 2
    weight[np.abs(now.sdf) > _BAND_VOXELS * now.voxel] = 0
    return (now.sdf + weight * (before - now.sdf)).astype(np.float32)

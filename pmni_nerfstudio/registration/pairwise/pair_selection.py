# SPDX-License-Identifier: Apache-2.0
"""Selection of overlapping pairs of views by the angle between their viewing directions."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

_MIN_COSINE = -0.5
"""Views more than 120 degrees apart are never paired: they share little but the rim of the object."""


def choose_pairs(
    R: Float[np.ndarray, "n 3 3"], max_angle_deg: float, max_neighbors: int, min_neighbors: int
) -> Int[np.ndarray, "q 2"]:
    """Choose pairs of views that see much of the same surface; each pair in both directions.

    Args:
        R: camera-to-world rotations.
        max_angle_deg: largest angle between the viewing directions of a pair.
        max_neighbors: largest number of neighbors per view; they are spread evenly over the sorted angles, since with
            the nearest views alone errors would accumulate around the object.
        min_neighbors: where fewer views are within the angle, this many nearest views are taken.
    """
    n = len(R)
    cosine = R[:, :, 2] @ R[:, :, 2].T
    np.fill_diagonal(cosine, -2)
    chosen = np.zeros((n, n), bool)
    for i in range(n):
        order = np.argsort(-cosine[i], kind="stable")
        within = int((cosine[i] > np.cos(np.radians(max_angle_deg))).sum())
        if within <= min_neighbors:
            near = order[: min(min_neighbors, n - 1)]
            near = near[cosine[i, near] > _MIN_COSINE]
        else:
            near = order[np.unique(np.linspace(0, within - 1, min(max_neighbors, within)).round().astype(int))]
        chosen[i, near] = True
    return np.argwhere(chosen | chosen.T)

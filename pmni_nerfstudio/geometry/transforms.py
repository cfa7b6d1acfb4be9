# SPDX-License-Identifier: Apache-2.0
"""Similarities (4, 4) between worlds, as between the unit sphere and the data's own, and what they do to poses."""

from __future__ import annotations

import numpy as np


def scale_of(similarity: np.ndarray) -> float:
    """How many units of the world that it leads to make one of the world that it comes from."""
    return float(np.cbrt(np.linalg.det(similarity[:3, :3])))


def rigid(c2w: np.ndarray) -> np.ndarray:
    """(N, 4, 4) poses with the nearest orthonormal rotations: single precision on the way here leaves 1e-7."""
    c2w = np.array(c2w, dtype=np.float64)
    u, _, vt = np.linalg.svd(c2w[:, :3, :3])
    c2w[:, :3, :3] = u @ vt
    return c2w


def transform_poses(similarity: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """Rigid poses (N, 4, 4) in the world that a similarity leads to; axes unchanged.

    A camera has no size: its position is moved, and its axes only turned.
    """
    poses = similarity @ c2w
    poses[:, :3, :3] /= scale_of(similarity)
    return rigid(poses)

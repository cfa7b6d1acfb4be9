# SPDX-License-Identifier: Apache-2.0
"""Similarity alignment of a result to the ground truth: without given poses, a result is determined only up to one."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.transforms import scale_of, transform_points

KEPT_SHARE = 0.8
"""Share of the result's points used by each ICP step: those nearest to the visible ground truth. Parts that no camera
sees, such as the underside, are thus ignored."""
MAX_STEPS = 60
"""Maximum number of ICP steps."""
TOLERANCE = 1e-7
"""Length of a step, relative to the extent of the points, below which the iteration stops."""


def similarity_from_cameras(c2w: np.ndarray, c2w_true: np.ndarray) -> np.ndarray:
    """Similarity (4, 4) that aligns camera poses with their ground truth.

    The rotation is the chordal L2 mean of the relative orientations (Hartley et al., "Rotation Averaging", IJCV 2013).
    Scale and translation are fitted to the camera centers. They serve as an initialization only: distant cameras
    constrain the scale weakly.

    Args:
        c2w: (N, 4, 4) poses of the result.
        c2w_true: (N, 4, 4) ground-truth poses with the same camera axes.

    Raises:
        PmniError: All cameras share one center, so that the scale is undetermined.
    """
    U, _, Vt = np.linalg.svd(np.einsum("nij,nkj->ik", c2w_true[:, :3, :3], c2w[:, :3, :3]))
    rotation = U @ np.diag([1.0, 1.0, np.linalg.det(U @ Vt)]) @ Vt
    source, target = c2w[:, :3, 3] @ rotation.T, c2w_true[:, :3, 3]
    spread = np.linalg.norm(source - source.mean(0))
    if not spread > 1e-9 * np.linalg.norm(source):  # rounding alone separates equal centers on some processors
        raise PmniError(
            "the scale can't be aligned because all evaluated poses share one camera center; evaluate with --no-align"
        )
    scale = np.linalg.norm(target - target.mean(0)) / spread
    out = np.eye(4)
    out[:3, :3] = scale * rotation
    out[:3, 3] = target.mean(0) - scale * source.mean(0)
    return out


def fit_similarity(
    points: np.ndarray, truth: RayCaster, true_seen: np.ndarray, start: np.ndarray, rotate: bool
) -> np.ndarray:
    """Refine a similarity by trimmed point-to-plane ICP with Gauss-Newton steps.

    Args:
        points: (P, 3) samples of the result's surface.
        truth: Ground-truth surface.
        true_seen: (V, 3) points of the ground-truth surface that the cameras see.
        start: (4, 4) initial similarity.
        rotate: Whether to refine the rotation. With known poses it stays fixed, since a wrong mesh would bias it.

    Returns:
        (4, 4) similarity from the points' world to the ground truth. If the scale changes by more than a factor of
        about three, the fit has diverged and the initial similarity is returned.

    References:
        Chen and Medioni, "Object Modeling by Registration of Multiple Range Images", ICRA 1991.
        Chetverikov et al., "The Trimmed Iterative Closest Point Algorithm", ICPR 2002.
    """
    align, start_scale = start.copy(), scale_of(start)
    tree = KDTree(true_seen)
    for _ in range(MAX_STEPS):
        moved = transform_points(align, points)
        distance, _ = tree.query(moved, workers=-1)
        moved = moved[distance <= np.quantile(distance, KEPT_SHARE)]
        # Residuals refer to the surface rather than to its samples, so that accuracy doesn't depend on the resolution.
        closest, n = truth.closest(moved)
        center = moved.mean(0)
        arm = moved - center
        size = np.sqrt((arm**2).sum(-1).mean())
        # Unknowns: translation, scaling and rotation about the center, the latter two in units of length.
        columns = [n, (n * arm).sum(-1, keepdims=True) / size]
        if rotate:
            columns.append(np.cross(arm, n) / size)
        residual = ((closest - moved) * n).sum(-1)
        # The least-norm solution leaves unconstrained directions at zero, such as the rotations of a sphere.
        step = np.linalg.lstsq(np.concatenate(columns, axis=-1), residual, rcond=1e-6)[0]
        rotation = Rotation.from_rotvec(step[4:] / size if rotate else np.zeros(3)).as_matrix()
        change = np.eye(4)
        change[:3, :3] = np.exp(np.clip(step[3] / size, -0.2, 0.2)) * rotation
        change[:3, 3] = center + step[:3] - change[:3, :3] @ center
        align = change @ align
        if not 0.3 < scale_of(align) / start_scale < 3.0:
            return start
        if np.linalg.norm(step) < TOLERANCE * size:
            break
    return align

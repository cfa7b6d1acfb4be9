# SPDX-License-Identifier: Apache-2.0
"""The similarity that takes a result to the true world: a result without given poses is right only up to one."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.transforms import scale_of

KEPT = 0.8
"""Share of the result's points that the fit goes by: those nearest to what is seen of the truth. A result's underside,
which nobody saw, is no evidence."""


def similarity_from_cameras(c2w: np.ndarray, c2w_true: np.ndarray) -> np.ndarray:
    """Similarity (4, 4) from the world of poses (N, 4, 4) to that of the true ones.

    The rotation is the mean of what the orientations say (chordal L2 mean; Hartley et al., "Rotation Averaging", IJCV
    2013), scale and shift come from the cameras' centres: good enough to start from only, since a scene seen from afar
    holds the distance of its cameras weakly.

    Raises:
        PmniError: the cameras all stand in one place, which tells no scale.
    """
    U, _, Vt = np.linalg.svd(np.einsum("nij,nkj->ik", c2w_true[:, :3, :3], c2w[:, :3, :3]))
    rotation = U @ np.diag([1.0, 1.0, np.linalg.det(U @ Vt)]) @ Vt
    source, target = c2w[:, :3, 3] @ rotation.T, c2w_true[:, :3, 3]
    spread = np.linalg.norm(source - source.mean(0))
    if not spread > 1e-9 * np.linalg.norm(source):  # rounding alone spreads equal centres on some processors
        raise PmniError("the poses to be scored all stand in one place, which tells no scale; score without alignment")
    scale = np.linalg.norm(target - target.mean(0)) / spread
    out = np.eye(4)
    out[:3, :3] = scale * rotation
    out[:3, 3] = target.mean(0) - scale * source.mean(0)
    return out


def fit_similarity(
    points: np.ndarray,
    truth: RayCaster,
    true_seen: np.ndarray,
    start: np.ndarray,
    rotate: bool,
    max_steps: int = 60,
    tolerance: float = 1e-7,
) -> np.ndarray:
    """Refine a similarity so that points fall on the true surface: trimmed point-to-plane ICP, Gauss-Newton steps.

    (Chen and Medioni, 1991; Chetverikov et al., "The Trimmed Iterative Closest Point Algorithm", 2002.)

    Args:
        points: (P, 3) on the result.
        truth: the true surface.
        true_seen: (V, 3) points of it that the cameras see.
        start: (4, 4) similarity to begin with.
        rotate: whether the rotation is fitted too. With poses it is not: a bad mesh would drag it off.
        max_steps: at most so many.
        tolerance: stops when a step is smaller, relative to the points' extent.

    Returns:
        (4, 4) similarity from the points' world to the truth's; the start where points have so little to do with the
        surface that the fit would shrink or blow them up.
    """
    align, begun = start.copy(), scale_of(start)
    tree = KDTree(true_seen)
    for _ in range(max_steps):
        moved = points @ align[:3, :3].T + align[:3, 3]
        distance, _ = tree.query(moved, workers=-1)
        moved = moved[distance <= np.quantile(distance, KEPT)]
        # the fit itself goes to the surface, so that it is as exact for few pixels as for many
        closest, n = truth.closest(moved)
        centre = moved.mean(0)
        arm = moved - centre
        size = np.sqrt((arm**2).sum(-1).mean())
        # unknowns: shift, growth and turn about the centre, the latter two in units of length
        columns = [n, (n * arm).sum(-1, keepdims=True) / size]
        if rotate:
            columns.append(np.cross(arm, n) / size)
        gap = ((closest - moved) * n).sum(-1)
        # the least-norm solution stays put along what the surface leaves open, as a sphere does its turns
        step = np.linalg.lstsq(np.concatenate(columns, axis=-1), gap, rcond=1e-6)[0]
        turn = Rotation.from_rotvec(step[4:] / size if rotate else np.zeros(3)).as_matrix()
        change = np.eye(4)
        change[:3, :3] = np.exp(np.clip(step[3] / size, -0.2, 0.2)) * turn
        change[:3, 3] = centre + step[:3] - change[:3, :3] @ centre
        align = change @ align
        if not 0.3 < scale_of(align) / begun < 3.0:
            return start
        if np.linalg.norm(step) < tolerance * size:
            break
    return align

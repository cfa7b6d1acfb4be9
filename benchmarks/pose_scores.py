# SPDX-License-Identifier: Apache-2.0
"""Scores of camera poses of which some may be missing or wrong, against the true ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.sim3 import angles_deg

AGREEMENT_DEG = 5.0
"""Largest error of a view that counts for the alignment of the whole."""


@dataclass(frozen=True)
class Score:
    """Camera orientations of one method on one scene, after one rotation of the whole."""

    views: int
    registered: int
    """Views with a pose."""
    under_1deg: int
    under_5deg: int
    mean_deg: float | None
    """Mean error of the registered views; None if there are none."""
    worst_deg: float | None

    def as_dict(self) -> dict[str, float | int | None]:
        """Fields by name."""
        return asdict(self)


def score(c2w: Float[np.ndarray, "n 4 4"], c2w_true: Float[np.ndarray, "n 4 4"]) -> Score:
    """Score poses after the rotation of the world that the most registered views agree on.

    A mean over all views, as `evaluation/alignment.py` takes it, would spread the error of views that are entirely wrong
    over the right ones. Positions are not scored: the object's distance follows from the masks, and methods without
    scale would need a second alignment for it.

    Args:
        c2w: camera-to-world poses, NaN for views without one.
        c2w_true: true poses, with the same camera axes.

    Raises:
        ValueError: the numbers of poses differ.
    """
    if len(c2w) != len(c2w_true):
        raise ValueError(f"{len(c2w)} poses for {len(c2w_true)} views")
    registered = np.isfinite(c2w).all(axis=(1, 2))
    R, R_true = c2w[registered, :3, :3], c2w_true[registered, :3, :3]
    count = len(R)
    if count == 0:
        return Score(len(c2w), 0, 0, 0, None, None)
    # Row i: errors of all views if the world is rotated such that view i is right.
    rotations = R_true @ np.swapaxes(R, 1, 2)
    candidates = [_errors_deg(rotation, R, R_true) for rotation in rotations]
    best = max(candidates, key=lambda errors: ((errors < AGREEMENT_DEG).sum(), -np.median(errors)))
    for _ in range(10):
        agreeing = best < AGREEMENT_DEG
        refined = _errors_deg(Rotation.from_matrix(rotations[agreeing]).mean().as_matrix(), R, R_true)
        if (refined < AGREEMENT_DEG).sum() < agreeing.sum():
            break
        best = refined
    return Score(
        views=len(c2w),
        registered=count,
        under_1deg=int((best < 1).sum()),
        under_5deg=int((best < 5).sum()),
        mean_deg=float(best.mean()),
        worst_deg=float(best.max()),
    )


def _errors_deg(
    rotation: Float[np.ndarray, "3 3"], R: Float[np.ndarray, "n 3 3"], R_true: Float[np.ndarray, "n 3 3"]
) -> Float[np.ndarray, " n"]:
    return angles_deg(rotation @ R, R_true)

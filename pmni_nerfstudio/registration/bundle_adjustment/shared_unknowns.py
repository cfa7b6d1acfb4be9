# SPDX-License-Identifier: Apache-2.0
"""Estimates of unknowns that all views share, and their covariance, with all poses unknown."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.registration.levenberg_marquardt import Linearization

MIN_VIEWS = 5
"""Fewest views whose scatter gives a standard deviation."""


def shared_estimate(
    linear: Linearization, view_gradients: Float[np.ndarray, "n s"], poses_are_free: bool = True
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, "s s"]]:
    """One Gauss-Newton step of the shared unknowns, and the covariance of the estimate.

    Poses are eliminated by the Schur complement. The errors of neighboring pixels are correlated, so the covariance does
    not count pixels: it is the cluster-robust (sandwich) estimate with one cluster per view (Liang and Zeger, 1986).

    Args:
        linear: linearization by the poses of n views, followed by the shared unknowns.
        view_gradients: each view's part of the gradient by the shared unknowns.
        poses_are_free: False if the poses are known.
    """
    views, shared = view_gradients.shape
    count = 6 * views
    information, scores = linear.hessian[count:, count:], view_gradients
    if poses_are_free:
        mixed = linear.hessian[:count, count:]
        response = np.linalg.solve(linear.hessian[:count, :count] + 1e-9 * np.eye(count), mixed)
        information = information - mixed.T @ response
        by_pose = linear.gradient[:count].reshape(views, 6, 1) * response.reshape(views, 6, shared)
        scores = scores - by_pose.sum(axis=1)
    inverse = np.linalg.inv(information + 1e-12 * np.eye(shared))
    total = scores.sum(axis=0)
    centered = scores - total / views
    scatter = centered.T @ centered * views / max(views - 1, 1)
    return -inverse @ total, inverse @ scatter @ inverse

# SPDX-License-Identifier: Apache-2.0
"""Normal bundle adjustment of poses and shared intrinsics, and how well the observations determine the intrinsics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.geometry.cameras import corrected_intrinsics
from pmni_nerfstudio.registration.bundle_adjustment.problem import INTRINSICS, BundleProblem
from pmni_nerfstudio.registration.bundle_adjustment.shared_unknowns import shared_estimate
from pmni_nerfstudio.registration.levenberg_marquardt import Linearization
from pmni_nerfstudio.registration.poses import Poses

_MAX_LOG_FOCAL = 0.1
"""Largest change of the logarithm of the focal length in one step."""
_MAX_SHIFT = 0.05
"""Largest shift of the principal point along one axis in one step, in focal lengths."""


@dataclass(frozen=True, eq=False)
class Cameras:
    """Poses and intrinsics of all views."""

    poses: Poses
    K: Float[np.ndarray, "n 3 3"]
    """Intrinsics in pixels, pixel centers at integers."""


class CameraProblem:
    """Normal bundle adjustment of poses and shared intrinsics, for `levenberg_marquardt.solve`.

    Args:
        bundle: the problem for the poses.
        free: which of the focal length and the principal point's x and y are unknowns.
    """

    def __init__(self, bundle: BundleProblem, free: Bool[np.ndarray, " 3"]) -> None:
        self.bundle, self.free = bundle, free
        count = 6 * len(bundle.views)
        self._index = np.concatenate([np.arange(count), count + np.flatnonzero(free)])

    def linearize(self, state: Cameras) -> Linearization:
        """Cost, gradient and Hessian by the poses and the free intrinsics."""
        full = self.bundle.linearize_shared(state.poses, state.K, with_intrinsics=True)
        return Linearization(full.hessian[np.ix_(self._index, self._index)], full.gradient[self._index], full.cost)

    def retract(self, state: Cameras, delta: Float[np.ndarray, " p"]) -> Cameras:
        """Cameras moved by twists and changes of the intrinsics; large steps of the intrinsics are shortened."""
        count = 6 * len(self.bundle.views)
        change = np.zeros(INTRINSICS)
        change[self.free] = delta[count:]
        limits = np.array([_MAX_LOG_FOCAL, _MAX_SHIFT, _MAX_SHIFT])
        factor = min(1.0, 1 / max(float((np.abs(change) / limits).max()), 1e-12))
        poses = self.bundle.retract(state.poses, factor * delta[:count])
        change *= factor
        return Cameras(poses, corrected_intrinsics(state.K, float(np.exp(change[0])), self.bundle.focal * change[1:]))


@dataclass(frozen=True, eq=False)
class IntrinsicsEstimate:
    """One Gauss-Newton step of the shared intrinsics, and its covariance; units of `INTRINSICS`."""

    step: Float[np.ndarray, " 3"]
    """The step to the minimum of the quadratic model of the cost, all poses following."""
    covariance: Float[np.ndarray, "3 3"]
    """Covariance of the estimate from the scatter of the views' gradients."""


def estimate_intrinsics(bundle: BundleProblem, cameras: Cameras) -> IntrinsicsEstimate:
    """Determine how well the observations fix the shared intrinsics, all poses being unknown.

    Args:
        bundle: the problem at the current surface.
        cameras: poses and intrinsics, at or near the minimum.
    """
    linear = bundle.linearize_shared(cameras.poses, cameras.K, with_intrinsics=True)
    return IntrinsicsEstimate(*shared_estimate(linear, bundle.shared_gradients))

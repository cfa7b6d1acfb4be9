# SPDX-License-Identifier: Apache-2.0
"""Normal bundle adjustment of poses and the reflectance bias of the normals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.geometry.reflectance_bias import COEFFICIENTS, roughness_penalty
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleProblem
from pmni_nerfstudio.registration.levenberg_marquardt import Linearization
from pmni_nerfstudio.registration.poses import Poses

_PRIOR_WEIGHT = 1e-4
"""Weight of the prior, where the cost of one surface point at the Huber threshold counts 1/2 divided by the number of
points: weak against any view, and enough to fix angles that no view observes."""
_PRIOR_DEG, _PRIOR_SECOND_DIFFERENCE_DEG = 10.0, 5.0
"""Standard deviations of the prior on the coefficients and on their second differences."""


@dataclass(frozen=True, eq=False)
class BiasedPoses:
    """Poses of all views, and the coefficients of the bias to remove from their normals."""

    poses: Poses
    coefficients: Float[np.ndarray, " c"]


class BiasProblem:
    """Normal bundle adjustment of poses and reflectance bias, for `levenberg_marquardt.solve`.

    Both have to be unknowns of one problem: a bias alternated with the poses converges slowly, because a common elevation
    of all cameras absorbs most of it.

    Args:
        bundle: the problem for the poses.
        fixed_poses: the poses are known, and the bias is the only unknown.
    """

    def __init__(self, bundle: BundleProblem, fixed_poses: bool = False) -> None:
        self.bundle, self.fixed_poses = bundle, fixed_poses
        smooth = roughness_penalty() / np.deg2rad(_PRIOR_SECOND_DIFFERENCE_DEG) ** 2
        self._prior = _PRIOR_WEIGHT * (smooth + np.eye(COEFFICIENTS) / np.deg2rad(_PRIOR_DEG) ** 2)

    def linearize(self, state: BiasedPoses) -> Linearization:
        """Cost, gradient and Hessian by the poses and the coefficients; the former are zero for fixed poses."""
        c, first = state.coefficients, 6 * len(self.bundle.views)
        linear = self.bundle.linearize_shared(state.poses, self.bundle.views.K, bias=c)
        hessian, gradient = linear.hessian, linear.gradient
        if self.fixed_poses:
            hessian[:first], hessian[:, :first], gradient[:first] = 0, 0, 0
        hessian[first:, first:] += self._prior
        gradient[first:] += self._prior @ c
        return Linearization(hessian, gradient, linear.cost + 0.5 * float(c @ self._prior @ c))

    def retract(self, state: BiasedPoses, delta: Float[np.ndarray, " p"]) -> BiasedPoses:
        """State moved by twists and changes of the coefficients."""
        first = 6 * len(self.bundle.views)
        return BiasedPoses(self.bundle.retract(state.poses, delta[:first]), state.coefficients + delta[first:])

# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment of poses that several moments share: static cameras in front of a moving object."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleProblem
from pmni_nerfstudio.registration.levenberg_marquardt import Linearization
from pmni_nerfstudio.registration.poses import Poses


class JointProblem:
    """Sum of the `BundleProblem`s of several moments over the same poses, for `levenberg_marquardt.solve`.

    Args:
        problems: one problem for each moment; their views have the same cameras, in the same order.
    """

    def __init__(self, problems: Sequence[BundleProblem]) -> None:
        self._problems = problems

    def linearize(self, state: Poses) -> Linearization:
        """Mean cost, gradient and Hessian of the moments."""
        parts = [problem.linearize(state) for problem in self._problems]
        return Linearization(
            np.mean([part.hessian for part in parts], axis=0),
            np.mean([part.gradient for part in parts], axis=0),
            float(np.mean([part.cost for part in parts])),
        )

    def retract(self, state: Poses, delta: Float[np.ndarray, " p"]) -> Poses:
        """Poses moved by their twists; see `BundleProblem.retract`."""
        return self._problems[0].retract(state, delta)

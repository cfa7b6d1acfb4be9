# SPDX-License-Identifier: Apache-2.0
"""Gauss-Newton steps of all poses against a surface that training refines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.registration.alternation import AlternationSchedule
from pmni_nerfstudio.registration.bundle_adjustment.normal_lookup import lookup_channels
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleProblem
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import contours
from pmni_nerfstudio.registration.levenberg_marquardt import solve
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.threads import one_thread


class PoseSteps:
    """The pose step of registration's finest level, repeatable with a changing surface; see `BundleProblem`.

    Args:
        views: views whose poses are refined.
        schedule: schedule of registration, of which the last level and the solver's criteria are used.
        seed: seed of the surface points.
    """

    def __init__(self, views: Views, schedule: AlternationSchedule = AlternationSchedule(), seed: int = 0) -> None:
        level = schedule.levels[-1]
        self.views, self.criteria = views, schedule.criteria
        self.options = replace(schedule.bundle, points=level.points, huber=level.huber)
        self.rng = np.random.default_rng(seed)
        self.channels = lookup_channels(views, self.options.curvature)
        self.contours = contours(views, self.options.contour_points)

    def step(self, surface: Surface, c2w: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 4 4"]:
        """Move the poses so that the views' normals agree better at the surface's points.

        Args:
            surface: the current surface.
            c2w: camera-to-world poses, OpenCV axes.

        Returns:
            The new poses; the given ones where no step lowers the cost.
        """
        poses = Poses.from_c2w(c2w)
        with one_thread():
            depths = surface.depths(self.views, poses)
            problem = BundleProblem(
                self.views, surface, poses, depths, self.contours, self.options, self.rng, self.channels
            )
            return solve(problem, poses, self.criteria).state.c2w()

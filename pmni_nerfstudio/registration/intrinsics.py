# SPDX-License-Identifier: Apache-2.0
"""Refinement of intrinsics that all views share, where the views are near enough to determine them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from pmni_nerfstudio.geometry.cameras import corrected_intrinsics
from pmni_nerfstudio.registration.alternation import AlternationSchedule, Level, alternate
from pmni_nerfstudio.registration.bundle_adjustment.intrinsics import (
    CameraProblem,
    Cameras,
    estimate_intrinsics,
)
from pmni_nerfstudio.registration.bundle_adjustment.normal_lookup import lookup_channels
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleProblem
from pmni_nerfstudio.registration.bundle_adjustment.shared_unknowns import MIN_VIEWS
from pmni_nerfstudio.registration.confidence import view_agreement
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_MIN_IMPROVEMENT = 0.95
"""Largest residual with refined intrinsics, relative to that with the given ones. Right corrections reached .4 to .8."""
_MAX_IOU_LOSS = 0.005
"""Largest decrease of the mean IoU of masks and rendered silhouettes. Right corrections increased it."""


@dataclass(frozen=True)
class IntrinsicsOptions:
    """Tests of observability and significance, and rounds of the refinement of intrinsics."""

    enabled: bool = True
    """False: never change the intrinsics."""
    normal_bias_deg: float = 0.5
    """Systematic error of the normals that the standard deviations allow for, in degrees. A shift of the principal point
    by b focal lengths has the same effect as a tilt of all normals by the angle b, so this bounds what can be known of the
    principal point however many pixels there are; a radial error of the normals acts like a wrong focal length."""
    max_focal_std: float = 0.1
    """Observability: largest relative standard deviation of a focal length that is refined."""
    max_center_std: float = 0.03
    """Observability: largest standard deviation of a principal point that is refined, in image diagonals."""
    significance: float = 2.0
    """Smallest change that starts the refinement, in standard deviations."""
    max_rounds: int = 6
    """Largest number of steps of the intrinsics, each followed by an alternation of poses and surface."""
    level: Level = Level(65, 3, hull_votes=2, slack_voxels=0.5)
    """Alternation after each step; it restarts from the visual hull, which depends on the intrinsics."""
    criteria: Criteria = Criteria(max_iterations=4, initial_damping=1e-4, damping_floor=1e-9, relative_decrease=0.0)
    """Criteria of the steps."""


@dataclass(frozen=True)
class RefinedIntrinsics:
    """Result of the refinement of intrinsics: one change for all views.

    The principal point's shift is in mean focal lengths of the views, so that it holds at any resolution.
    """

    focal_factor: float
    """Refined over given focal length; 1 if unchanged."""
    shift: tuple[float, float]
    """Shift of the principal point along x and y; 0 if unchanged."""
    focal_std: float
    """Relative standard deviation of the focal length, systematic errors of the normals included; NaN if unknown."""
    shift_std: tuple[float, float]
    """Standard deviations of the principal point, likewise."""
    focal_observable: bool
    """The views determine the focal length."""
    center_observable: bool
    """The views determine the principal point."""
    reason: str
    """Why the intrinsics were changed or not."""
    warning: str | None = None
    """One line for the user if the given intrinsics do not fit the views."""

    @property
    def applied(self) -> bool:
        """The intrinsics were changed."""
        return self.focal_factor != 1.0 or any(self.shift)

    def corrected(self, K: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "n 3 3"]:
        """Refined intrinsics, given those of all views at any resolution; the same array if nothing was changed."""
        if not self.applied:
            return K
        return corrected_intrinsics(K, self.focal_factor, _mean_focal(K) * np.array(self.shift))

    def describe(self, views: Views) -> str:
        """Text of the change, with the principal point in percent of the image width."""
        change = np.array([np.log(self.focal_factor), *self.shift])
        return _described(change, np.array([self.focal_std, *self.shift_std]), views)

    def statistics(self, K: Float[np.ndarray, "n 3 3"]) -> dict:
        """Contents for a JSON file, with pixels of the resolution of the given intrinsics K; None for unknown values."""
        pixels = _mean_focal(K)
        return {
            "applied": self.applied,
            "reason": self.reason,
            "focal_change_percent": _rounded(100 * (self.focal_factor - 1)),
            "focal_std_percent": _rounded(100 * self.focal_std),
            "focal_observable": self.focal_observable,
            "principal_point_change_px": [_rounded(pixels * value) for value in self.shift],
            "principal_point_std_px": [_rounded(pixels * value) for value in self.shift_std],
            "principal_point_observable": self.center_observable,
        }


@dataclass(frozen=True, eq=False)
class _Measurement:
    """Estimated change of the intrinsics at converged poses; units of `INTRINSICS`."""

    problem: BundleProblem
    """The problem at the current surface."""
    cameras: Cameras
    """Converged poses, and the current intrinsics."""
    step: Float[np.ndarray, " 3"]
    scatter_std: Float[np.ndarray, " 3"]
    """Standard deviations from the scatter of the views: what further steps can gain."""
    std: Float[np.ndarray, " 3"]
    """Standard deviations with systematic errors of the normals: what can be known."""
    observable: Bool[np.ndarray, " 3"]
    residual_deg: float
    """Median angle between the views' normals at the same surface points, in degrees."""

    def exceeds(self, std: Float[np.ndarray, " 3"], factor: float) -> Bool[np.ndarray, " 3"]:
        """Unknowns whose step exceeds a multiple of a standard deviation; the principal point's two go together."""
        large = np.abs(self.step) > factor * std
        return np.array([large[0], large[1:].any(), large[1:].any()])


@dataclass(frozen=True, eq=False)
class _Steps:
    """Steps of the intrinsics over one set of views."""

    views: Views
    channels: list[Float[Tensor, "11 h w"]]
    """`lookup_channels` of the views."""
    schedule: AlternationSchedule
    options: IntrinsicsOptions
    seed: int

    def measure(self, K: Float[np.ndarray, "n 3 3"], poses: Poses, surface: Surface) -> _Measurement:
        """Estimate the change of the intrinsics from the normals alone, and test its observability.

        The surface was carved by the silhouettes at the current intrinsics, and silhouettes would hold these there: with
        them, a focal length 30% too large called for a step of 0.4%, without them for one of 20%.
        """
        o, views = self.options, replace(self.views, K=K)
        bundle = replace(self.schedule.bundle, points=o.level.points, huber=o.level.huber, silhouette_weight=0.0)
        rng, depths = np.random.default_rng(self.seed), surface.depths(views, poses)
        problem = BundleProblem(views, surface, poses, depths, [], bundle, rng, self.channels)
        cameras = Cameras(solve(problem, poses, o.criteria).state, K)
        estimate = estimate_intrinsics(problem, cameras)
        scatter = np.sqrt(np.diag(estimate.covariance))
        bias = np.deg2rad(o.normal_bias_deg) * np.array([1 / _angular_radius(views), 1.0, 1.0])
        std = np.hypot(scatter, bias)
        center_limit = o.max_center_std * np.hypot(views.width, views.height) / problem.focal
        observable = std < np.array([o.max_focal_std, center_limit, center_limit])
        observable[1:] = observable[1:].all()
        residual_deg = float(np.nanmedian(problem.residual_deg))
        return _Measurement(problem, cameras, estimate.step, scatter, std, observable, residual_deg)

    def take(self, measured: _Measurement, free: Bool[np.ndarray, " 3"]) -> Cameras:
        """Poses and intrinsics that minimize the problem of a measurement."""
        return solve(CameraProblem(measured.problem, free), measured.cameras, self.options.criteria).state

    def realternate(self, cameras: Cameras) -> tuple[_Measurement, Surface]:
        """Poses and surface by alternation with fixed intrinsics, and the measurement there."""
        views = replace(self.views, K=cameras.K)
        schedule = replace(self.schedule, levels=(self.options.level,))
        poses, surface = alternate(views, cameras.poses, schedule, self.seed)
        return self.measure(cameras.K, poses, surface), surface


def refine_intrinsics(
    views: Views,
    poses: Poses,
    surface: Surface,
    trusted: Bool[np.ndarray, " n"],
    schedule: AlternationSchedule = AlternationSchedule(),
    options: IntrinsicsOptions = IntrinsicsOptions(),
    seed: int = 0,
) -> tuple[Views, Poses, Surface, RefinedIntrinsics]:
    """Correct focal length and principal point, by one change for all views, where the views determine them.

    Either is left alone unless it is observable (its standard deviation is small) and the views call for a significant
    change (of several standard deviations). The change is kept only if the views then agree better with the surface.
    If nothing is changed, the very views, poses and surface that were given are returned.

    Args:
        views: all views.
        poses: their poses after coarse alternation.
        surface: the surface of that alternation.
        trusted: views to use; the other poses follow the motion of the world as a whole.
        schedule: options of the steps; its levels are not used.
        options: tests and rounds.
        seed: seed of the surface points.

    Returns:
        Views with refined intrinsics, poses, the surface of the views in use, and the change.
    """
    index = np.flatnonzero(trusted)
    if not options.enabled:
        return views, poses, surface, unchanged_intrinsics(None, "refinement of intrinsics is switched off")
    if len(index) < MIN_VIEWS:
        return views, poses, surface, unchanged_intrinsics(None, f"fewer than {MIN_VIEWS} views fit each other")
    used = views.subset(list(index))
    steps = _Steps(used, lookup_channels(used, schedule.bundle.curvature), schedule, options, seed)

    first = measured = steps.measure(used.K, poses.subset(index), surface)
    significant = first.exceeds(first.std, options.significance)
    free = first.observable & significant
    if not free.any():
        return views, poses, surface, _left_alone(used, first, significant)
    before, surface_before = steps.realternate(first.cameras)
    rounds = 0
    while True:
        measured, refined_surface = steps.realternate(steps.take(measured, free))
        free |= measured.observable & measured.exceeds(measured.std, options.significance)
        rounds += 1
        if rounds == options.max_rounds or not (free & measured.exceeds(measured.scatter_std, 1.0)).any():
            break
    final = steps.take(measured, free)
    change = _change(views, used.K[0], final.K[0], measured)
    loss = _mean_iou(used, before, surface_before) - _mean_iou(used, measured, refined_surface)
    if measured.residual_deg > _MIN_IMPROVEMENT * before.residual_deg or loss > _MAX_IOU_LOSS:
        warning = (
            f"the intrinsics may be wrong: the normals call for {change.describe(views)}, with which the views agree no "
            "better, so the intrinsics were left as given; check the calibration"
        )
        return (
            views,
            poses,
            surface,
            unchanged_intrinsics(measured, "the views agree no better with other intrinsics", warning),
        )
    moved = poses.transformed(*align(poses.subset(index), final.poses)).replaced(index, final.poses)
    return replace(views, K=change.corrected(views.K)), moved, refined_surface, change


def _mean_iou(views: Views, measured: _Measurement, surface: Surface) -> float:
    """Mean IoU of the views' masks and the rendered silhouettes."""
    cameras = measured.cameras
    return float(view_agreement(replace(views, K=cameras.K), cameras.poses, surface).iou.mean())


def _change(
    views: Views, given: Float[np.ndarray, "3 3"], refined: Float[np.ndarray, "3 3"], measured: _Measurement
) -> RefinedIntrinsics:
    """Result with a change, from the given and refined intrinsics of one view and the last measurement."""
    shift = (refined[:2, 2] - given[:2, 2]) / float(views.focal.mean())
    change = RefinedIntrinsics(
        focal_factor=float(refined[0, 0] / given[0, 0]),
        shift=(float(shift[0]), float(shift[1])),
        **_tests(measured),
        reason="the views call for other intrinsics and agree better with them",
    )
    warning = (
        f"the intrinsics did not fit the views and were corrected by {change.describe(views)}; check the calibration, or "
        "the normals, whose systematic errors can have the same effect"
    )
    return replace(change, warning=warning)


def _left_alone(views: Views, measured: _Measurement, significant: Bool[np.ndarray, " 3"]) -> RefinedIntrinsics:
    """Result without a change, from the first measurement."""
    if significant.any():
        names = " and ".join(n for n, s in (("focal length", significant[0]), ("principal point", significant[1])) if s)
        warning = (
            f"the {names} may be wrong (by about {_described(measured.step, measured.std, views)}), but "
            "the cameras are too far from the object to correct it; check the calibration"
        )
        return unchanged_intrinsics(measured, "not observable: the cameras are too far from the object", warning)
    if not measured.observable.any():
        return unchanged_intrinsics(measured, "not observable: the cameras are too far from the object")
    return unchanged_intrinsics(measured, "the given intrinsics fit the views within the standard deviations")


def unchanged_intrinsics(measured: _Measurement | None, reason: str, warning: str | None = None) -> RefinedIntrinsics:
    """Result without a change."""
    return RefinedIntrinsics(1.0, (0.0, 0.0), **_tests(measured), reason=reason, warning=warning)


def _tests(measured: _Measurement | None) -> dict[str, Any]:
    """Standard deviations and observability as fields of a result."""
    std = np.full(3, np.nan) if measured is None else measured.std
    return {
        "focal_std": float(std[0]),
        "shift_std": (float(std[1]), float(std[2])),
        "focal_observable": measured is not None and bool(measured.observable[0]),
        "center_observable": measured is not None and bool(measured.observable[1]),
    }


def _described(change: Float[np.ndarray, " 3"], std: Float[np.ndarray, " 3"], views: Views) -> str:
    """Text of a change of the intrinsics, in units of `INTRINSICS`, with its standard deviations.

    It holds at any resolution: the views may be smaller than the files.
    """
    focal, unit = 100 * np.expm1(change[0]), 100 * float(views.focal.mean()) / views.width
    (x, y), spread = unit * change[1:], unit * std[1:].max()
    return (
        f"{focal:+.1f} +- {100 * std[0]:.1f}% of the focal length, and ({x:+.1f}, {y:+.1f}) +- {spread:.1f}% of the image "
        "width of principal point"
    )


def _angular_radius(views: Views) -> float:
    """Mean angular radius of the object about its mask's centroid, as a tangent."""
    radii = []
    for mask, focal in zip(views.masks, views.focal):
        pixels = np.argwhere(mask)
        if len(pixels):
            radii.append(np.linalg.norm(pixels - pixels.mean(axis=0), axis=1).max() / focal)
    return float(np.mean(radii))


def _mean_focal(K: Float[np.ndarray, "n 3 3"]) -> float:
    """Mean focal length of all views in pixels."""
    return float(K[:, [0, 1], [0, 1]].mean())


def _rounded(value: float) -> float | None:
    """A number for a JSON file; None if unknown."""
    return round(value, 4) if np.isfinite(value) else None

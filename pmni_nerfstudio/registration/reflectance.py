# SPDX-License-Identifier: Apache-2.0
"""Estimation of the reflectance bias that the normals of all views share, and the test whether it is significant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.geometry.reflectance_bias import COEFFICIENTS, ReflectanceBias, basis, directions_to_viewer
from pmni_nerfstudio.registration.alternation import AlternationSchedule
from pmni_nerfstudio.registration.bundle_adjustment.normal_lookup import lookup_channels
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleProblem
from pmni_nerfstudio.registration.bundle_adjustment.reflectance import BiasedPoses, BiasProblem
from pmni_nerfstudio.registration.bundle_adjustment.shared_unknowns import MIN_VIEWS, shared_estimate
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import contours
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_CURVE_DEG = tuple(range(0, 91, 10))
"""Angles at which the curve is reported, in degrees."""


@dataclass(frozen=True)
class ReflectanceOptions:
    """Test of significance, and steps of the estimate."""

    enabled: bool = True
    """False: never change the normals."""
    min_rms_deg: float = 1.0
    """Smallest bias that is removed: root mean square over the pixels, in degrees. Exact normals gave .1 to .2 degrees and
    focal lengths that are 30% off .7, the normals of glossy surfaces 2.6."""
    max_rms_deg: float = 10.0
    """Largest bias that is removed: larger ones, as of metals or of poses that are all wrong, are no tilt by one curve."""
    significance: float = 8.0
    """Smallest bias that is removed, in standard deviations. Glossy surfaces reached 25; the mean of biases that differ from
    view to view 4.5, and its removal made the poses worse."""
    doubt: float = 3.0
    """Smallest bias that is reported as a doubt if it is not removed, in standard deviations; at least `min_rms_deg`."""
    points: int = 4000
    """Surface points of the estimate."""
    huber: float = 0.02
    """Huber threshold of the estimate; see `BundleOptions`."""
    criteria: Criteria = Criteria(max_iterations=4, initial_damping=1e-4, damping_floor=1e-9, relative_decrease=0.0)
    """Criteria of the estimate."""


@dataclass(frozen=True)
class EstimatedBias:
    """Reflectance bias of the normals of all views, and whether it was removed."""

    bias: ReflectanceBias
    """The bias to remove; zero if it is not significant."""
    rms_deg: float
    """Estimated bias, whether or not it is removed: root mean square over the pixels, in degrees; NaN if unknown."""
    std_deg: float
    """Standard deviation of the estimate, likewise."""
    curve_deg: tuple[float, ...]
    """Estimated curve in degrees, at 0, 10, ..., 90 degrees between normal and viewing direction; empty if unknown."""
    reason: str
    """Why the bias was removed or not."""
    warning: str | None = None
    """One line for the user if a bias is likely and was not removed."""

    @property
    def applied(self) -> bool:
        """The bias is removed from the normals."""
        return not self.bias.is_zero

    def removed_from(self, views: Views) -> Views:
        """Views without the bias; the very views given if nothing is removed."""
        if not self.applied:
            return views
        maps = [self.bias.removed(n, valid, K) for n, valid, K in zip(views.normals, views.valid, views.K)]
        return replace(views, normals=np.stack(maps))

    @property
    def note(self) -> str | None:
        """One line for the user if the bias is removed."""
        if not self.applied:
            return None
        return (
            f"the normals of all views lean away from the viewer by the same curve, {self.rms_deg:.1f} +- "
            f"{self.std_deg:.1f} deg (RMS), as those of glossy surfaces do; it was removed"
        )

    def statistics(self) -> dict[str, Any]:
        """Contents for a JSON file; None for unknown values."""
        known = np.isfinite(self.rms_deg)
        return {
            "applied": self.applied,
            "reason": self.reason,
            "rms_deg": round(self.rms_deg, 4) if known else None,
            "std_deg": round(self.std_deg, 4) if known else None,
            "curve_deg": [[angle, round(value, 3)] for angle, value in zip(_CURVE_DEG, self.curve_deg)],
        }


def bias_from_record(record: Mapping[str, Any]) -> EstimatedBias:
    """An estimate from the dictionary that `dataclasses.asdict` made of it.

    Raises:
        TypeError, ValueError, KeyError: the dictionary is something else.
    """
    coefficients = tuple(map(float, record["bias"]["coefficients"]))
    if len(coefficients) != COEFFICIENTS:
        raise ValueError(f"a reflectance bias has {COEFFICIENTS} coefficients, not {len(coefficients)}")
    return EstimatedBias(
        ReflectanceBias(coefficients),
        float(record["rms_deg"]),
        float(record["std_deg"]),
        tuple(map(float, record["curve_deg"])),
        str(record["reason"]),
        None if record["warning"] is None else str(record["warning"]),
    )


def unknown_bias(reason: str) -> EstimatedBias:
    """Result without an estimate."""
    return EstimatedBias(ReflectanceBias(), float("nan"), float("nan"), (), reason)


def estimate_bias(
    views: Views,
    poses: Poses,
    surface: Surface,
    trusted: Bool[np.ndarray, " n"],
    schedule: AlternationSchedule = AlternationSchedule(),
    options: ReflectanceOptions = ReflectanceOptions(),
    seed: int = 0,
    fixed_poses: bool = False,
) -> tuple[Poses, EstimatedBias]:
    """Estimate the reflectance bias together with the poses, and whether it is significant.

    Args:
        views: all views.
        poses: their poses.
        surface: the surface at these poses.
        trusted: views to use; the other poses follow the motion of the world as a whole.
        schedule: options of the bundle adjustment; its levels are not used.
        options: tests and steps.
        seed: seed of the surface points.
        fixed_poses: the poses are known.

    Returns:
        Poses with the bias removed, the very poses given if it is not significant, and the bias.
    """
    index = np.flatnonzero(trusted)
    if not options.enabled:
        return poses, unknown_bias("the estimation of the reflectance bias is switched off")
    if len(index) < MIN_VIEWS:
        return poses, unknown_bias(f"fewer than {MIN_VIEWS} views fit each other")
    used, start = views.subset(list(index)), poses.subset(index)
    bundle_options = replace(schedule.bundle, points=options.points, huber=options.huber)
    channels = lookup_channels(used, bundle_options.curvature)
    bundle = BundleProblem(
        used,
        surface,
        start,
        surface.depths(used, start),
        contours(used, bundle_options.contour_points),
        bundle_options,
        np.random.default_rng(seed),
        channels,
    )
    problem = BiasProblem(bundle, fixed_poses)
    state = solve(problem, BiasedPoses(start, np.zeros(COEFFICIENTS)), options.criteria).state
    _, covariance = shared_estimate(problem.linearize(state), bundle.shared_gradients, not fixed_poses)
    moments = _moments(used)
    c = state.coefficients
    rms_deg = float(np.rad2deg(np.sqrt(c @ moments @ c)))
    std_deg = float(np.rad2deg(np.sqrt(np.trace(moments @ covariance))))
    curve = tuple(float(value) for value in np.rad2deg(basis(np.deg2rad(np.array(_CURVE_DEG, float))) @ c))
    kept = EstimatedBias(ReflectanceBias(), rms_deg, std_deg, curve, "not significant")
    if rms_deg < max(options.min_rms_deg, options.doubt * std_deg):
        return poses, kept
    if rms_deg < options.significance * std_deg:
        return poses, replace(kept, reason="too uncertain to be removed", warning=_warning(rms_deg, std_deg))
    if rms_deg > options.max_rms_deg:
        reason = "too large to be one curve of the angle"
        return poses, replace(kept, reason=reason, warning=_warning(rms_deg, std_deg))
    found = replace(kept, bias=ReflectanceBias(tuple(map(float, c))), reason="the views agree on it")
    return poses.transformed(*align(start, state.poses)).replaced(index, state.poses), found


def _warning(rms_deg: float, std_deg: float) -> str:
    return (
        f"the normals of all views seem to lean away from the viewer, by {rms_deg:.1f} +- {std_deg:.1f} deg (RMS), but not "
        "clearly by one curve, so nothing was removed; the elevation of all cameras may be off by as much; check the normals "
        "(photometric stereo of glossy or metallic surfaces)"
    )


def _moments(views: Views) -> Float[np.ndarray, "c c"]:
    """Mean products of the basis functions over the pixels with a normal."""
    total, count = np.zeros((COEFFICIENTS, COEFFICIENTS)), 0
    for normals, valid, K in zip(views.normals, views.valid, views.K):
        cosine = (normals[valid] * directions_to_viewer(valid, K)).sum(axis=1)
        functions = basis(np.arccos(cosine.clip(-1, 1)))
        total += functions.T @ functions
        count += len(functions)
    return total / max(count, 1)

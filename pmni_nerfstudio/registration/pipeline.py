# SPDX-License-Identifier: Apache-2.0
"""The registration pipeline: from normal maps and masks, with rough poses or none, to poses and a surface."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.geometry.sim3 import angles_deg
from pmni_nerfstudio.registration.alternation import AlternationSchedule, alternate, alternate_subset, detailed
from pmni_nerfstudio.registration.confidence import ViewAgreement, plausible_views, view_agreement
from pmni_nerfstudio.registration.framing import in_reference_frame
from pmni_nerfstudio.registration.given_poses import compare_with_given
from pmni_nerfstudio.registration.intrinsics import (
    IntrinsicsOptions,
    RefinedIntrinsics,
    refine_intrinsics,
    unchanged_intrinsics,
)
from pmni_nerfstudio.registration.monitoring import Monitor, OnProgress, Watcher
from pmni_nerfstudio.registration.pairwise.multiway import PairwiseSchedule
from pmni_nerfstudio.registration.pairwise.ring_hypotheses import Hypothesis
from pmni_nerfstudio.registration.partial import CoarseResult, load_coarse_result, save_coarse_result
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.reflectance import EstimatedBias, ReflectanceOptions, estimate_bias, unknown_bias
from pmni_nerfstudio.registration.relocalization import relocalize
from pmni_nerfstudio.registration.starts import Start, starts
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.symmetry import find_symmetry
from pmni_nerfstudio.registration.verdict import MAX_OUTLIERS, Verdict, judge
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.threads import one_thread

_MAX_STARTS = 4
"""Largest number of starts that are tried."""
_FITTING_SHARE, _FITTING_COST = 0.8, 0.27
"""Least share of inlier views and largest disagreement after the coarse levels at which no other start is tried. Otherwise
the next start is tried as well, and the one with the lowest disagreement is continued. Right poses had a disagreement of
0.15 to 0.22, poses of which a third was wrong 0.36."""
_MIN_INLIERS = 3
_ROUNDS_OF_RELOCALIZATION = 2
"""Largest number of times that outliers of the finished surface are relocalized."""
_RELOCATED_DEG = 5.0
"""Smallest change of rotation by a search over all rotations that counts as a pose found again."""


@dataclass(frozen=True)
class RegistrationSettings:
    """Settings of registration; the cache of results is keyed by them."""

    seed: int = 0
    """Seed of the random points. Results with the same seed agree to some hundredths of a degree; rounding differs."""
    pairwise: PairwiseSchedule | None = field(default_factory=PairwiseSchedule)
    """Pairwise registration of integrated depth maps. None: the alternation starts from the rough poses as they are, for
    several objects, whose depths relative to each other integration does not tell."""
    alternation: AlternationSchedule = field(default_factory=AlternationSchedule)
    """Alternation of pose and surface steps."""
    intrinsics: IntrinsicsOptions = field(default_factory=IntrinsicsOptions)
    """Refinement of intrinsics."""
    reflectance: ReflectanceOptions = field(default_factory=ReflectanceOptions)
    """Estimation of the reflectance bias of the normals."""


@dataclass(frozen=True, eq=False)
class Registration:
    """Result of registration, in the unit-sphere world of the rough poses (without rough poses: y up)."""

    c2w: Float[np.ndarray, "n 4 4"]
    """Camera-to-world, OpenCV axes."""
    surface: Surface
    verdict: Verdict
    """Whether the result can be trusted, and the status of every view."""
    agreement: ViewAgreement
    """Agreement of every view with the surface."""
    intrinsics: RefinedIntrinsics
    """Change of the intrinsics of all views."""
    reflectance: EstimatedBias
    """Reflectance bias of the normals of all views; poses and surface hold for normals without it."""
    start: str
    """Start that led to the result: rough poses, ring, or unordered views."""
    hypotheses: tuple[Hypothesis, ...]
    """Ring hypotheses that were tried; empty with rough poses."""
    pairwise_cost: float
    """Final cost of pairwise registration, 0 to 1."""
    seconds: dict[str, float]
    """Time of each stage."""

    @property
    def trusted(self) -> Bool[np.ndarray, " n"]:
        """Views that fit the others; the surface is made from them alone."""
        return self.verdict.included

    def corrected(self, views: Views) -> Views:
        """The given views with corrected normals and intrinsics, for which poses and surface hold."""
        return _corrected(views, self.reflectance, self.intrinsics)


def _corrected(views: Views, reflectance: EstimatedBias, intrinsics: RefinedIntrinsics) -> Views:
    return replace(reflectance.removed_from(views), K=intrinsics.corrected(views.K))


@dataclass(frozen=True, eq=False)
class _Attempt:
    """Poses and surface after the coarse levels, from one start."""

    start: Start
    poses: Poses
    surface: Surface | None
    inliers: Bool[np.ndarray, " n"]
    agreement: ViewAgreement | None
    """Agreement of the views with the surface; None if the schedule has no coarse levels."""

    @property
    def fits(self) -> bool:
        """Whether the views fit well enough that no other start is needed."""
        if self.agreement is None:
            return True
        return self.cost <= _FITTING_COST and float(self.inliers.mean()) >= _FITTING_SHARE

    @property
    def cost(self) -> float:
        """Disagreement of the views with the surface, 0 to 1."""
        return 0.0 if self.agreement is None else self.agreement.cost


def register(
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"] | None,
    settings: RegistrationSettings = RegistrationSettings(),
    on_progress: OnProgress | None = None,
    watcher: Watcher | None = None,
    partial: Path | None = None,
) -> Registration:
    """Recover poses and a first surface from normal maps and masks.

    Args:
        views: all views to register, in any order.
        c2w: rough poses, camera to unit-sphere world, OpenCV axes. None if unknown. Where most of them contradict the
            views, they are ignored.
        settings: schedules and seed.
        on_progress: receives progress.
        watcher: receives progress and intermediate results.
        partial: file that keeps the coarse result until the end; if it exists, registration goes on from there.

    Raises:
        PmniError: the file cannot be read or written.
    """
    alternation, seed = settings.alternation, settings.seed
    rounds = sum(level.rounds for level in alternation.levels)
    monitor = Monitor(on_progress, watcher, len(views), rounds, pairwise_share=0.4 if c2w is None else 0.15)
    with one_thread():
        coarse, fine = alternation.split_at_restart()
        if partial is not None and partial.is_file():
            views, attempt, corrections = _kept_attempt(views, partial, monitor)
        else:
            views, attempt, corrections = _best_attempt(views, c2w, settings, coarse, monitor)
            if partial is not None and attempt.surface is not None:
                result = CoarseResult(
                    attempt.start, attempt.poses, attempt.surface, attempt.inliers, *corrections, monitor.seconds
                )
                save_coarse_result(partial, result)
        reflectance, intrinsics = corrections

        # Fine levels; views that do not fit the finished surface are searched again over all rotations.
        poses, surface, inliers, relocated = _finish(views, attempt, fine, seed, monitor)
        monitor.lap("alternation")

        # World of the rough poses, and the verdict there.
        given, reference, aligned = None, attempt.start.reference, inliers
        if c2w is not None:
            rough = Poses.from_c2w(c2w)
            given = compare_with_given(poses, rough, inliers)
            if given.world_is_kept:
                reference, aligned = rough, inliers & given.agreeing
        poses, surface = in_reference_frame(poses, surface, reference, aligned)
        included = np.flatnonzero(inliers)
        surface = detailed(views.subset(list(included)), poses.subset(included), surface, alternation)
        monitor.lap("detail")
        agreement = view_agreement(views, poses, surface)
        verdict = judge(views, agreement, inliers, relocated, given, find_symmetry(surface), intrinsics, reflectance)
        monitor.lap("judgement")
    return Registration(
        c2w=poses.c2w(),
        surface=surface,
        verdict=verdict,
        agreement=agreement,
        intrinsics=intrinsics,
        reflectance=reflectance,
        start=attempt.start.name,
        hypotheses=attempt.start.hypotheses,
        pairwise_cost=attempt.start.pairwise_cost,
        seconds=monitor.seconds,
    )


_Corrections = tuple[EstimatedBias, RefinedIntrinsics]
"""Corrections that all views share: reflectance bias of the normals, and intrinsics."""


def _kept_attempt(views: Views, partial: Path, monitor: Monitor) -> tuple[Views, _Attempt, _Corrections]:
    """The coarse result of an interrupted registration; the same values as of `_best_attempt`."""
    kept = load_coarse_result(partial, len(views))
    monitor.seconds |= kept.seconds
    monitor.coarse_levels_skipped(kept.poses, kept.start.reference)
    attempt = _Attempt(kept.start, kept.poses, kept.surface, kept.inliers, None)
    return _corrected(views, kept.reflectance, kept.intrinsics), attempt, (kept.reflectance, kept.intrinsics)


def _best_attempt(
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"] | None,
    settings: RegistrationSettings,
    coarse: AlternationSchedule,
    monitor: Monitor,
) -> tuple[Views, _Attempt, _Corrections]:
    """The first start that fits, or else the best one, and the views' common errors found with it.

    Returns:
        The views with corrected normals and intrinsics, the attempt, and the corrections.
    """
    # Starts are tried at the coarse levels until one fits; each registers the integrated depth maps pairwise.
    attempts: list[_Attempt] = []
    for start in starts(views, c2w, settings.pairwise, settings.seed, monitor.pairwise_progress):
        monitor.pairwise_finished(start.poses, start.reference)
        attempts.append(_attempt(views, start, coarse, settings.seed, monitor))
        if attempts[-1].fits or len(attempts) == _MAX_STARTS:
            break
    attempt = min(attempts, key=lambda a: a.cost)
    monitor.pairwise_finished(attempt.poses, attempt.start.reference)

    # Reflectance bias first: it looks like a wrong principal point. Then intrinsics, where the views are near enough.
    reflectance = unknown_bias("the schedule has no coarse levels")
    intrinsics = unchanged_intrinsics(None, "the schedule has no coarse levels")
    surface, poses = attempt.surface, attempt.poses
    if surface is not None:
        common = (attempt.inliers, settings.alternation)
        poses, reflectance = estimate_bias(views, poses, surface, *common, settings.reflectance, settings.seed)
        views = reflectance.removed_from(views)
        monitor.lap("reflectance")
        last = (*common, settings.intrinsics, settings.seed)
        views, poses, surface, intrinsics = refine_intrinsics(views, poses, surface, *last)
        if intrinsics.applied and not reflectance.applied:
            # What looked like a bias of the normals may have been the error of the intrinsics.
            poses, reflectance = estimate_bias(views, poses, surface, *common, settings.reflectance, settings.seed)
            views = reflectance.removed_from(views)
        attempt = replace(attempt, poses=poses, surface=surface)
    monitor.lap("intrinsics")
    return views, attempt, (reflectance, intrinsics)


def _attempt(views: Views, start: Start, coarse: AlternationSchedule, seed: int, monitor: Monitor) -> _Attempt:
    """Coarse alternation from one start; outlier views are relocalized against the surface of the others."""
    inliers = np.ones(len(views), dtype=bool)
    if not coarse.levels:
        return _Attempt(start, start.poses, None, inliers, None)
    poses, surface = alternate(views, start.poses, coarse, seed, on_round=monitor.round_finished)
    agreement = view_agreement(views, poses, surface)
    outliers = agreement.outliers()
    if 0 < outliers.sum() <= MAX_OUTLIERS * len(views) and (~outliers).sum() >= _MIN_INLIERS:
        poses, surface = alternate_subset(views, poses, ~outliers, coarse, seed)
        poses, surface, inliers = _with_relocalized(views, poses, surface, ~outliers, coarse, seed)
        agreement = view_agreement(views, poses, surface)
    elif outliers.any():
        inliers = ~outliers
    return _Attempt(start, poses, surface, inliers, agreement)


def _finish(
    views: Views, attempt: _Attempt, fine: AlternationSchedule, seed: int, monitor: Monitor
) -> tuple[Poses, Surface, Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Fine alternation of the inlier views, and a search over all rotations for every other view.

    Returns:
        Poses of all views, the surface, the views that it is made from, and the views that were searched again.
    """
    inliers, relocated = attempt.inliers, ~attempt.inliers
    poses, surface = alternate_subset(views, attempt.poses, inliers, fine, seed, monitor.round_finished)
    for round_ in range(_ROUNDS_OF_RELOCALIZATION):
        agreement = view_agreement(views, poses, surface)
        fitting, unsuspected = ~agreement.outliers(), ~agreement.suspects()
        required = max(_MIN_INLIERS, (1 - MAX_OUTLIERS) * len(views))
        if round_ == 0 and unsuspected.sum() >= required:
            fitting = unsuspected  # once: a suspect may be right, and stays suspect then
        if fitting.all() or fitting.sum() < required:
            inliers = inliers | fitting
            break
        if not fitting[inliers].all():  # the surface holds views that do not fit: make it without them
            inliers = inliers & fitting
            poses, surface = alternate_subset(views, poses, inliers, fine, seed)
        before, sought = poses, ~inliers
        poses, surface, inliers = _with_relocalized(views, poses, surface, inliers, fine, seed)
        relocated = relocated | (sought & (angles_deg(before.R, poses.R) > _RELOCATED_DEG))
        if inliers.all() or (inliers == ~sought).all():
            break
    return poses, surface, inliers, relocated


def _with_relocalized(
    views: Views,
    poses: Poses,
    surface: Surface,
    inliers: Bool[np.ndarray, " n"],
    schedule: AlternationSchedule,
    seed: int,
) -> tuple[Poses, Surface, Bool[np.ndarray, " n"]]:
    """Relocalize all views but the inliers, and include those that fit.

    Plausible views are tried: a view is included if it fits the surface that is made with it.

    Returns:
        Poses of all views, the surface of the included views, and which these are.
    """
    poses = relocalize(views, poses, ~inliers, surface, schedule.bundle, seed)
    tried = inliers | plausible_views(views, poses, surface, inliers)
    if (tried == inliers).all():
        return poses, surface, inliers
    tried_poses, tried_surface = alternate_subset(views, poses, tried, schedule, seed)
    fitting = tried & ~view_agreement(views, tried_poses, tried_surface).outliers()
    if fitting.sum() <= inliers.sum():
        return poses, surface, inliers
    included = inliers | fitting
    if (included == tried).all():
        return tried_poses, tried_surface, included
    return *alternate_subset(views, poses, included, schedule, seed), included

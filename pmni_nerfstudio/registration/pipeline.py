# SPDX-License-Identifier: Apache-2.0
"""The registration pipeline: from normal maps and masks, with rough poses or none, to poses and a surface."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.geometry.sim3 import angles_deg
from pmni_nerfstudio.registration.alternation import AlternationSchedule, alternate, alternate_subset
from pmni_nerfstudio.registration.confidence import ViewAgreement, view_agreement
from pmni_nerfstudio.registration.framing import center_on_masks, in_reference_frame
from pmni_nerfstudio.registration.monitoring import Monitor, OnProgress, Watcher
from pmni_nerfstudio.registration.pairwise.multiway import PairwiseSchedule, register_pairwise
from pmni_nerfstudio.registration.pairwise.ring_hypotheses import Hypothesis, register_without_poses
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.relocalization import relocalize
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.symmetry import find_symmetry
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.threads import one_thread

_MAX_RESIDUAL_DEG = 12.0
"""Median residual of the normals above which the result is reported as wrong. Normals with 5 degrees of noise and 5 of
bias left 7 degrees at right poses, wrong poses 15 and more."""
_MAX_ROTATION_DEG = 60.0
"""Largest plausible change of the median view by pairwise registration. No rough pose is so far off, but views of a
symmetric shape (sphere, vase) may all slide to the same pose, where they agree best."""
_MAX_OUTLIERS = 0.4
"""Largest fraction of the views that is relocalized: with more outliers the surface of the rest is no reference."""
_MIN_INLIERS = 3


@dataclass(frozen=True)
class RegistrationSettings:
    """Settings of registration; the cache of results is keyed by them."""

    seed: int = 0
    """Seed of the random points. Results with the same seed agree to some hundredths of a degree; rounding differs."""
    pairwise: PairwiseSchedule = field(default_factory=PairwiseSchedule)
    """Pairwise registration of integrated depth maps."""
    alternation: AlternationSchedule = field(default_factory=AlternationSchedule)
    """Alternation of pose and surface steps."""


@dataclass(frozen=True, eq=False)
class Registration:
    """Result of registration, in the unit-sphere world of the rough poses (without rough poses: y up)."""

    c2w: Float[np.ndarray, "n 4 4"]
    """Camera-to-world, OpenCV axes."""
    surface: Surface
    trusted: Bool[np.ndarray, " n"]
    """Views that fit the others; the surface is made from them alone."""
    agreement: ViewAgreement
    """Agreement of every view with the surface."""
    hypotheses: tuple[Hypothesis, ...]
    """Ring hypotheses that were tried; empty with rough poses."""
    pairwise_cost: float
    """Final cost of pairwise registration, 0 to 1."""
    seconds: dict[str, float]
    """Time of each stage."""
    warnings: tuple[str, ...]
    """Warnings to show to the user, one line each."""


def register(
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"] | None,
    settings: RegistrationSettings = RegistrationSettings(),
    on_progress: OnProgress | None = None,
    watcher: Watcher | None = None,
) -> Registration:
    """Recover poses and a first surface from normal maps and masks.

    Args:
        views: all views to register.
        c2w: rough poses, camera to unit-sphere world, OpenCV axes. None if unknown: then the views must go once around
            the object in order.
        settings: schedules and seed.
        on_progress: receives progress.
        watcher: receives progress and intermediate results.
    """
    pairwise, alternation, seed = settings.pairwise, settings.alternation, settings.seed
    rounds = sum(level.rounds for level in alternation.levels)
    monitor = Monitor(on_progress, watcher, len(views), rounds, pairwise_share=0.4 if c2w is None else 0.15)
    with one_thread():
        # Pairwise registration of integrated depth maps.
        if c2w is None:
            start, hypotheses = register_without_poses(views, pairwise, seed, monitor.pairwise_progress)
            reference = poses = start.poses
        else:
            hypotheses, reference = (), Poses.from_c2w(c2w)
            start = register_pairwise(views, reference, pairwise, seed, monitor.pairwise_progress)
            collapsed = _median_rotation_deg(start.poses, reference) > _MAX_ROTATION_DEG
            poses = center_on_masks(views, reference) if collapsed else start.poses
        monitor.pairwise_finished(poses, reference)

        # Coarse alternation; outlier views are relocalized against the surface of the others.
        trusted = np.ones(len(views), dtype=bool)
        coarse, fine = alternation.split_at_restart()
        if coarse.levels:
            poses, surface = alternate(views, poses, coarse, seed, on_round=monitor.round_finished)
            outliers = view_agreement(views, poses, surface).outliers()
            if 0 < outliers.sum() <= _MAX_OUTLIERS * len(views) and (~outliers).sum() >= _MIN_INLIERS:
                poses, surface = alternate_subset(views, poses, ~outliers, coarse, seed)
                poses = relocalize(views, poses, outliers, surface, alternation.bundle, seed)
                trusted = ~outliers | ~view_agreement(views, poses, surface).outliers()

        # Fine alternation of the trusted views.
        poses, surface = alternate_subset(views, poses, trusted, fine, seed, monitor.round_finished)
        poses = relocalize(views, poses, ~trusted, surface, alternation.bundle, seed)
        monitor.lap("alternation")

        # World of the rough poses, and confidence there.
        poses, surface = in_reference_frame(poses, surface, reference, trusted)
        agreement = view_agreement(views, poses, surface)
        warnings = _warnings(views, surface, trusted, agreement, rough_poses=c2w is not None)
        monitor.lap("judgement")
    return Registration(
        c2w=poses.c2w(),
        surface=surface,
        trusted=trusted,
        agreement=agreement,
        hypotheses=hypotheses,
        pairwise_cost=start.cost,
        seconds=monitor.seconds,
        warnings=warnings,
    )


def _median_rotation_deg(poses: Poses, reference: Poses) -> float:
    """Median rotation angle between poses and reference poses after their alignment, in degrees."""
    return float(np.median(angles_deg(poses.transformed(*align(poses, reference)).R, reference.R)))


def _warnings(
    views: Views, surface: Surface, trusted: Bool[np.ndarray, " n"], agreement: ViewAgreement, rough_poses: bool
) -> tuple[str, ...]:
    """Warnings about a wrong result, outlier views and ambiguous poses."""
    out = []
    residual_deg = float(np.median(agreement.median_deg))
    if residual_deg > _MAX_RESIDUAL_DEG:
        out.append(
            f"no surface was found that the views agree on: their normals differ from it by {residual_deg:.0f} deg "
            "(median), so neither poses nor surface can be trusted; "
            + (
                "if your poses are accurate, keep them fixed (ns-train pmni-calibrated)"
                if rough_poses
                else "views without poses must be in order, once around the object"
            )
        )
    left_out = [views.names[i] for i in np.flatnonzero(~trusted)]
    if left_out:
        out.append(
            f"{len(left_out)} of {len(views)} views do not fit the others and were left out of the surface: "
            f"{', '.join(left_out)}; check their masks and normals, or exclude them (exclude-views)"
        )
    symmetry = find_symmetry(surface)
    if symmetry is not None:
        out.append(
            f"the poses are ambiguous because the shape is (nearly) symmetric: {symmetry.describe()}, so masks and "
            "normals look the same from several sides; even where the surface is right, views may be rotated against "
            "each other"
        )
    return tuple(out)

# SPDX-License-Identifier: Apache-2.0
"""Registration of captures with close-ups: the views of the whole object first, then the close-ups against their surface.

A close-up does not show the object's silhouette as a whole, by which views are framed and compared, and its normals vary
within a voxel of the object's surface. It needs a rough pose.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.data.close_ups import close_ups_among, pixel_sizes
from pmni_nerfstudio.registration.alternation import AlternationSchedule
from pmni_nerfstudio.registration.close_up_detail import close_up_detail
from pmni_nerfstudio.registration.close_up_poses import adjust_close_ups, place_close_up
from pmni_nerfstudio.registration.confidence import ViewAgreement, view_agreement
from pmni_nerfstudio.registration.monitoring import OnProgress, Watcher
from pmni_nerfstudio.registration.pipeline import Registration, RegistrationSettings, register
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.verdict import Verdict, ViewStatus
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.threads import one_thread

_MIN_WHOLE_VIEWS = 3
_ROUNDS = 2
"""Alternations of detail and poses of the close-ups."""
_MIN_CONFIDENCE = 0.35
"""Least confidence of a close-up that fits. Right ones, whose relief the surface lacked, had 0.5 and more; they are compared
with each other, since views of the whole object fit better."""
_SAME_FOCAL = 0.01
"""Relative difference of focal lengths up to which views have the same lens, whose intrinsics may be refined for all."""


def register_all(
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"] | None,
    settings: RegistrationSettings = RegistrationSettings(),
    on_progress: OnProgress | None = None,
    watcher: Watcher | None = None,
    partial: Path | None = None,
) -> Registration:
    """`register`, for captures with or without close-ups; the same arguments and result.

    With close-ups the watcher receives no intermediate results, which hold poses of all views.

    Raises:
        PmniError: the file of the partial result cannot be read or written.
    """
    close_ups = placed_close_ups(views, c2w)
    if c2w is None or not close_ups.any():
        return register(views, c2w, settings, on_progress, watcher, partial)
    whole = np.flatnonzero(~close_ups)
    if np.ptp(np.log(views.focal)) > _SAME_FOCAL:
        settings = replace(settings, intrinsics=replace(settings.intrinsics, enabled=False))
    found = register(views.subset(list(whole)), c2w[whole], settings, on_progress, None, partial)
    started_at = time.perf_counter()
    if on_progress is not None:
        on_progress("close-ups", 1.0, float(np.median(found.agreement.median_deg)))
    with one_thread():
        result = _with_close_ups(found, views, c2w, close_ups, settings)
    result.seconds["close-ups"] = round(time.perf_counter() - started_at, 3)
    return result


def placed_close_ups(views: Views, c2w: Float[np.ndarray, "n 4 4"] | None) -> Bool[np.ndarray, " n"]:
    """Views that are registered after the others: close-ups, unless the others are too few for a surface."""
    close_ups = close_ups_among(views, c2w)
    return close_ups & ((~close_ups).sum() >= _MIN_WHOLE_VIEWS)


def _with_close_ups(
    found: Registration,
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"],
    close_ups: Bool[np.ndarray, " n"],
    settings: RegistrationSettings,
) -> Registration:
    """The registration of the other views, and the close-ups placed against its surface."""
    schedule, rng = settings.alternation, np.random.default_rng(settings.seed)
    views, whole = found.corrected(views), np.flatnonzero(~close_ups)
    known, rough = Poses.from_c2w(found.c2w), Poses.from_c2w(c2w)
    surface = found.surface
    poses = rough.transformed(*align(rough.subset(whole), known)).replaced(whole, known)
    for view in np.flatnonzero(close_ups):
        placed = place_close_up(views.subset([view]), poses.subset([view]), surface, schedule, rng)
        poses = poses.replaced([view], placed)
    included = np.ones(len(views), dtype=bool)
    included[whole] = found.trusted
    index = np.flatnonzero(close_ups)
    placed = _agreement(views.subset(list(index)), poses.subset(index), surface)
    included[index] = ~placed.outliers() & (placed.confidence > _MIN_CONFIDENCE)
    poses = refine_close_ups(views, poses, close_ups, included, surface, schedule, rng, _ROUNDS)
    agreement = _agreement(views, poses, surface)
    return replace(
        found,
        c2w=poses.c2w(),
        agreement=agreement,
        verdict=_verdict(found.verdict, views, agreement, close_ups, included),
        seconds=dict(found.seconds),
    )


def refine_close_ups(
    views: Views,
    poses: Poses,
    close_ups: Bool[np.ndarray, " n"],
    included: Bool[np.ndarray, " n"],
    surface: Surface,
    schedule: AlternationSchedule,
    rng: np.random.Generator,
    rounds: int,
) -> Poses:
    """Alternate the detail that close-ups show and their poses.

    Args:
        views: all views.
        poses: their poses.
        close_ups: which of the views are close-ups; the poses of the included ones are refined.
        included: views that the detail is made from.
        surface: surface of the whole object.
        schedule: options of the steps.
        rng: random generator of the surface points.
        rounds: number of alternations.
    """
    index = np.flatnonzero(included)
    used, moves = views.subset(list(index)), close_ups[index]
    for _ in range(rounds if moves.any() else 0):
        current = poses.subset(index)
        detail = close_up_detail(used, current, moves, surface, schedule)
        if detail is None:
            break
        current = adjust_close_ups(used, current, moves, surface, detail.cube, detail.surface, schedule, rng)
        poses = poses.replaced(index, current)
    return poses


def _agreement(views: Views, poses: Poses, surface: Surface) -> ViewAgreement:
    """Agreement of the views with a surface, at whose resolution the normals of close-ups are compared."""
    sizes = pixel_sizes(views.K, poses.c2w())
    normals = views.normals.copy()
    for i in np.flatnonzero(sizes < 0.5 * surface.voxel):
        smooth = views.subset([i]).blurred(surface.voxel / sizes[i]).normals[0]
        normals[i][views.frame(i)] = smooth[views.frame(i)]
    return view_agreement(replace(views, normals=normals), poses, surface)


def _verdict(
    verdict: Verdict,
    views: Views,
    agreement: ViewAgreement,
    close_ups: Bool[np.ndarray, " n"],
    included: Bool[np.ndarray, " n"],
) -> Verdict:
    """The verdict on the other views, with the status of the close-ups."""
    statuses, others = [], iter(verdict.views)
    for i, is_close_up in enumerate(close_ups):
        if not is_close_up:
            statuses.append(next(others))
        elif included[i]:
            statuses.append(ViewStatus("ok"))
        else:
            statuses.append(
                ViewStatus(
                    "left out",
                    f"a close-up that fits nowhere near its rough pose: normals differ from the surface by "
                    f"{agreement.median_deg[i]:.1f} deg (median), mask IoU {agreement.iou[i]:.0%}",
                )
            )
    left_out = [views.names[i] for i in np.flatnonzero(close_ups & ~included)]
    if not left_out or verdict.name == "failed":
        return replace(verdict, views=tuple(statuses))
    reason = (
        f"{len(left_out)} of {int(close_ups.sum())} close-ups fit nowhere near their rough poses and were left out: "
        f"{', '.join(left_out)}; correct their poses"
    )
    return Verdict("doubtful", (*verdict.reasons, reason), tuple(statuses))

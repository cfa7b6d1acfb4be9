# SPDX-License-Identifier: Apache-2.0
"""Verdict on a registration: whether it can be trusted, why not, and the status of every view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool

from pmni_nerfstudio.registration.confidence import ViewAgreement
from pmni_nerfstudio.registration.given_poses import GivenPoses
from pmni_nerfstudio.registration.intrinsics import RefinedIntrinsics
from pmni_nerfstudio.registration.reflectance import EstimatedBias
from pmni_nerfstudio.registration.symmetry import Symmetry
from pmni_nerfstudio.registration.views import Views

MAX_RESIDUAL_DEG = 12.0
"""Median residual of the normals above which the result is wrong. Normals with 5 degrees of noise and 5 of bias left 7
degrees at right poses, wrong poses 15 and more."""
MIN_CONFIDENCE = 0.7
"""Mean confidence of the included views below which the result is doubtful. Right poses of all kinds of captures had at least
0.79; views of a thin object with a wrong principal point, whose poses were 1.1 degrees off, 0.60."""
MAX_OUTLIERS = 0.4
"""Largest share of outlier views: with more of them the surface of the rest is no reference."""

VerdictName = Literal["ok", "doubtful", "failed"]
Status = Literal["ok", "relocated", "left out"]
VERDICTS: tuple[VerdictName, ...] = get_args(VerdictName)
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class ViewStatus:
    """Status of one view."""

    status: Status
    reason: str = ""
    """Why the view was relocated or left out; empty if it is ok."""


@dataclass(frozen=True)
class Verdict:
    """Verdict on a registration."""

    name: VerdictName
    reasons: tuple[str, ...]
    """One sentence each: what was found, which views are concerned, and what to do."""
    views: tuple[ViewStatus, ...]

    @property
    def included(self) -> Bool[np.ndarray, " n"]:
        """Views that were not left out."""
        return np.array([view.status != "left out" for view in self.views])


def judge(
    views: Views,
    agreement: ViewAgreement,
    inliers: Bool[np.ndarray, " n"],
    relocated: Bool[np.ndarray, " n"],
    given: GivenPoses | None,
    symmetry: Symmetry | None,
    intrinsics: RefinedIntrinsics,
    reflectance: EstimatedBias,
) -> Verdict:
    """Judge a finished registration.

    Args:
        views: the registered views.
        agreement: agreement of every view with the final surface.
        inliers: views that the surface was made from.
        relocated: views that were searched again over all rotations.
        given: comparison with the given poses; None if there are none.
        symmetry: rotation that maps the surface onto itself, if any.
        intrinsics: change of the intrinsics.
        reflectance: reflectance bias of the normals.
    """
    outliers = agreement.outliers()
    statuses = tuple(
        _status(agreement, i, bool(inliers[i]), bool(relocated[i]), given, outliers[i]) for i in range(len(views))
    )
    failures = _failures(views, agreement, inliers, given)
    doubts = _doubts(views, agreement, inliers, symmetry, intrinsics, reflectance) if not failures else []
    notes = _notes(views, inliers, given, intrinsics, reflectance)
    name: VerdictName = "failed" if failures else "doubtful" if doubts else "ok"
    return Verdict(name, tuple([*failures, *doubts, *notes]), statuses)


def _status(
    agreement: ViewAgreement, view: int, inlier: bool, relocated: bool, given: GivenPoses | None, outlier: bool
) -> ViewStatus:
    """Status of one view."""
    numbers = (
        f"normals differ from the surface by {agreement.median_deg[view]:.1f} deg (median), "
        f"mask IoU {agreement.iou[view]:.0%}, confidence {agreement.confidence[view]:.2f} of "
        f"{np.median(agreement.confidence):.2f} (median view)"
    )
    if not inlier:
        return ViewStatus("left out", f"no pose makes it fit the other views: {numbers}")
    if given is not None and given.mistake is None and not given.agreeing[view]:
        return ViewStatus("relocated", f"its given pose is {given.rotation_deg[view]:.0f} deg off")
    if relocated:
        return ViewStatus("relocated", "it did not fit at first and was found again by a search over all rotations")
    return ViewStatus("ok", f"fits worse than the other views: {numbers}" if outlier else "")


def _failures(
    views: Views, agreement: ViewAgreement, inliers: Bool[np.ndarray, " n"], given: GivenPoses | None
) -> list[str]:
    """Reasons why neither poses nor surface can be trusted."""
    advice = (
        "if your poses are accurate, keep them fixed (ns-train pmni-calibrated); if they are not, try --ignore-poses"
        if given is not None
        else "check the convention of the normals, the intrinsics and the masks, and that all views show the same rigid "
        "object from viewpoints at most 40 deg apart"
    )
    out = []
    residual_deg = float(np.median(agreement.median_deg))
    if residual_deg > MAX_RESIDUAL_DEG:
        out.append(
            f"no surface was found that the views agree on: their normals differ from it by {residual_deg:.0f} deg "
            f"(median), so neither poses nor surface can be trusted; {advice}"
        )
    share = float((~inliers).mean())
    if share > MAX_OUTLIERS:
        out.append(
            f"{(~inliers).sum()} of {len(views)} views do not fit the others, too many to trust the poses of the rest; "
            f"{advice}"
        )
    return out


def _doubts(
    views: Views,
    agreement: ViewAgreement,
    inliers: Bool[np.ndarray, " n"],
    symmetry: Symmetry | None,
    intrinsics: RefinedIntrinsics,
    reflectance: EstimatedBias,
) -> list[str]:
    """Reasons for doubt about a result that did not fail."""
    out = []
    left_out = np.flatnonzero(~inliers)
    if len(left_out):
        out.append(
            f"{len(left_out)} of {len(views)} views do not fit the others and were left out of the surface: "
            f"{_names(views, left_out)}; check their masks and normals, or exclude them (exclude-views)"
        )
    weak = np.flatnonzero(inliers & agreement.outliers())
    if len(weak):
        out.append(
            f"{len(weak)} of {len(views)} views fit much worse than the others and may have wrong poses: "
            f"{_names(views, weak)}; check their masks and normals, or exclude them (exclude-views)"
        )
    confidence = float(agreement.confidence[inliers].mean()) if inliers.any() else 0.0
    if confidence < MIN_CONFIDENCE:
        out.append(
            f"the views agree badly with the surface: the confidence of their poses is {confidence:.2f} on average, and "
            f"mask IoU {np.median(agreement.iou):.0%} (median); check the intrinsics, the masks and the normals"
        )
    if symmetry is not None:
        out.append(
            f"the poses are ambiguous because the shape is (nearly) symmetric: {symmetry.describe()}, so masks and "
            "normals look the same from several sides; even where the surface is right, views may be rotated against "
            "each other"
        )
    if intrinsics.warning is not None and not intrinsics.applied:
        out.append(intrinsics.warning)
    if reflectance.warning is not None:
        out.append(reflectance.warning)
    return out


def _notes(
    views: Views,
    inliers: Bool[np.ndarray, " n"],
    given: GivenPoses | None,
    intrinsics: RefinedIntrinsics,
    reflectance: EstimatedBias,
) -> list[str]:
    """Corrections of the input that leave no doubt about the result."""
    out = [] if reflectance.note is None else [reflectance.note]
    if intrinsics.warning is not None and intrinsics.applied:
        out.append(intrinsics.warning)
    if given is None:
        return out
    if given.mistake is not None:
        out.append(f"the given poses were ignored because they contradict the views; {given.mistake}")
    elif not given.world_is_kept:
        out.append(
            "the given poses were ignored because most of them contradict the views; the result is in a world of its "
            "own; check the cameras file, or leave it out"
        )
    for i, j in given.swapped:
        out.append(
            f"the given poses of views {views.names[i]} and {views.names[j]} are swapped; both were found again, and "
            "their order in the cameras file needs to be corrected"
        )
    swapped = {view for pair in given.swapped for view in pair}
    wrong = [i for i in np.flatnonzero(~given.agreeing & inliers) if i not in swapped]
    if given.world_is_kept and wrong:
        out.append(
            f"the given poses of {len(wrong)} of {len(views)} views are wrong by more than 60 deg, and were found "
            f"again without them: {_names(views, np.array(wrong))}; correct them in the cameras file"
        )
    return out


def _names(views: Views, indices: np.ndarray) -> str:
    return ", ".join(views.names[i] for i in indices)

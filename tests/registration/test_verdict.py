# SPDX-License-Identifier: Apache-2.0
"""Verdicts on constructed registrations: ok, doubtful or failed, with reasons that name the right views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pmni_nerfstudio.geometry.reflectance_bias import COEFFICIENTS, ReflectanceBias
from pmni_nerfstudio.registration.confidence import ViewAgreement
from pmni_nerfstudio.registration.given_poses import GivenPoses
from pmni_nerfstudio.registration.intrinsics import unchanged_intrinsics
from pmni_nerfstudio.registration.reflectance import EstimatedBias, unknown_bias
from pmni_nerfstudio.registration.symmetry import Symmetry
from pmni_nerfstudio.registration.verdict import Verdict, judge
from pmni_nerfstudio.registration.views import Views

NAMES = tuple(f"photo-{letter}" for letter in "abcdefghij")
VIEWS = Views(NAMES, np.zeros((10, 4, 4, 3), np.float32), np.ones((10, 4, 4), bool), np.tile(np.eye(3), (10, 1, 1)))
INTRINSICS = unchanged_intrinsics(None, "not measured")
SYMMETRY = Symmetry(np.array([0.0, 0.0, 1.0]), 90.0, 0.03, continuous=False)


def where(*views: int) -> np.ndarray:
    """Flags of some of the ten views."""
    return np.isin(np.arange(10), views)


def agreement(median_deg: float = 2.0, confidence: dict[int, float] | None = None) -> ViewAgreement:
    """Agreement of ten views with a confidence of 0.8, but for some."""
    ratio = np.full(10, 0.8)
    for view, value in (confidence or {}).items():
        ratio[view] = value
    return ViewAgreement(np.full(10, median_deg + 1), np.full(10, median_deg), ratio, np.ones(10))


def given(wrong: dict[int, float] | None = None, **changes) -> GivenPoses:
    rotation_deg = np.full(10, 8.0)
    for view, angle in (wrong or {}).items():
        rotation_deg[view] = angle
    return GivenPoses(rotation_deg, **changes)


def verdict(
    of: ViewAgreement | None = None, left_out: tuple[int, ...] = (), relocated: tuple[int, ...] = (), **changes
) -> Verdict:
    options = {"given": None, "symmetry": None, "intrinsics": INTRINSICS, "reflectance": unknown_bias("why")} | changes
    return judge(VIEWS, of or agreement(), ~where(*left_out), where(*relocated), **options)


def named(text: str) -> list[str]:
    """Views that a text names."""
    return [name for name in NAMES if name in text]


def test_a_likely_bias_that_was_not_removed_is_a_doubt_and_a_removed_one_is_not():
    removed = EstimatedBias(ReflectanceBias((0.05,) * COEFFICIENTS), 2.9, 0.1, (), "they agree")
    assert verdict(reflectance=removed).name == "ok" and "was removed" in verdict(reflectance=removed).reasons[0]
    doubted = verdict(reflectance=replace(unknown_bias("why"), warning="they may lean"))
    assert (doubted.name, doubted.reasons) == ("doubtful", ("they may lean",))


@pytest.mark.parametrize("poses", [None, given()])
def test_views_that_agree_are_ok(poses):
    result = verdict(given=poses)
    assert (result.name, result.reasons) == ("ok", ())
    assert [(view.status, view.reason) for view in result.views] == 10 * [("ok", "")]
    assert result.included.all()


@pytest.mark.parametrize(("residual_deg", "name"), [(7, "ok"), (11, "ok"), (15, "failed"), (40, "failed")])
def test_large_residuals_of_all_views_fail(residual_deg, name):
    result = verdict(agreement(residual_deg))
    assert result.name == name
    assert ["no surface was found" in reason for reason in result.reasons] == [True] * (name == "failed")


@pytest.mark.parametrize(("left_out", "name"), [((), "ok"), ((3,), "doubtful"), ((0, 3, 4, 9), "doubtful")])
def test_views_that_are_left_out_are_doubts(left_out, name):
    result = verdict(left_out=left_out)
    assert result.name == name
    assert [named(reason) for reason in result.reasons] == ([[NAMES[view] for view in left_out]] if left_out else [])
    assert np.flatnonzero(~result.included).tolist() == list(left_out)
    assert [view.status for view in result.views] == ["left out" if k in left_out else "ok" for k in range(10)]
    assert all(bool(view.reason) == (view.status == "left out") for view in result.views)


def test_too_many_views_left_out_fail():
    result = verdict(left_out=(0, 3, 4, 7, 9))
    assert result.name == "failed"
    assert len(result.reasons) == 1 and "5 of 10 views" in result.reasons[0]
    assert "ignore-poses" not in result.reasons[0]
    assert "--ignore-poses" in verdict(left_out=(0, 3, 4, 7, 9), given=given()).reasons[0]


def test_a_weak_view_is_a_doubt_and_keeps_its_place():
    result = verdict(agreement(confidence={6: 0.4}))
    assert result.name == "doubtful"
    assert [named(reason) for reason in result.reasons] == [[NAMES[6]]]
    assert result.included.all()
    assert [k for k, view in enumerate(result.views) if view.reason] == [6]
    assert "0.40 of 0.80" in result.views[6].reason


def test_a_view_is_not_counted_as_weak_and_left_out():
    result = verdict(agreement(confidence={2: 0.1, 6: 0.4}), left_out=(2,))
    assert sorted(named(reason) for reason in result.reasons) == [[NAMES[2]], [NAMES[6]]]
    assert [view.status for view in result.views].count("left out") == 1


def test_a_symmetric_shape_is_a_doubt():
    result = verdict(symmetry=SYMMETRY)
    assert result.name == "doubtful"
    assert len(result.reasons) == 1 and "ambiguous" in result.reasons[0] and "90 deg" in result.reasons[0]


def test_intrinsics_that_do_not_fit_are_a_doubt_unless_they_were_corrected():
    unfit = replace(INTRINSICS, warning="the focal length is 8% too long")
    result = verdict(intrinsics=unfit)
    assert (result.name, result.reasons) == ("doubtful", ("the focal length is 8% too long",))
    corrected = verdict(intrinsics=replace(unfit, focal_factor=0.92))
    assert (corrected.name, corrected.reasons) == ("ok", result.reasons)


def test_a_failure_makes_no_smaller_doubts():
    """Symmetry of a wrong surface, and weak views of it, say nothing."""
    result = verdict(agreement(20, confidence={6: 0.3}), symmetry=SYMMETRY)
    assert result.name == "failed"
    assert len(result.reasons) == 1


def test_swapped_poses_are_named_and_no_doubt():
    result = verdict(given=given({1: 120, 7: 121}, swapped=((1, 7),)))
    assert result.name == "ok"
    assert (
        len(result.reasons) == 1 and "swapped" in result.reasons[0] and named(result.reasons[0]) == [NAMES[1], NAMES[7]]
    )
    assert [k for k, view in enumerate(result.views) if view.status == "relocated"] == [1, 7]
    assert "120 deg" in result.views[1].reason and "121 deg" in result.views[7].reason


def test_single_wrong_poses_are_named():
    result = verdict(given=given({1: 120, 7: 121, 4: 170}, swapped=((1, 7),)), relocated=(1, 4, 5, 7))
    assert result.name == "ok"
    assert [named(reason) for reason in result.reasons] == [[NAMES[1], NAMES[7]], [NAMES[4]]]
    assert [k for k, view in enumerate(result.views) if view.status == "relocated"] == [1, 4, 5, 7]
    assert "170 deg" in result.views[4].reason
    assert "search" in result.views[5].reason  # its given pose was right


def test_a_mistake_in_all_poses_relocates_no_view():
    wrong = {view: 150.0 for view in range(10)}
    result = verdict(given=given(wrong, mistake="the world is mirrored"))
    assert result.name == "ok"
    assert len(result.reasons) == 1
    assert "ignored" in result.reasons[0] and "the world is mirrored" in result.reasons[0]
    assert [view.status for view in result.views] == 10 * ["ok"]


def test_unrelated_poses_are_reported_as_ignored():
    result = verdict(given=given({view: 100.0 for view in range(7)}))
    assert len(result.reasons) == 1
    assert "ignored" in result.reasons[0] and "world of its own" in result.reasons[0]


# Outliers


@pytest.mark.parametrize(("relative", "outlier"), [(0.3, True), (0.6, True), (0.75, False), (1.2, False)])
@pytest.mark.parametrize("typical", [0.4, 0.8])
def test_outliers_have_far_less_confidence_than_the_median_view(typical, relative, outlier):
    ratio = np.full(10, typical)
    ratio[3] *= relative
    for inlier_ratio, iou in ((ratio, np.ones(10)), (np.ones(10), ratio), (np.sqrt(ratio), np.sqrt(ratio))):
        found = ViewAgreement(np.full(10, 3.0), np.full(10, 2.0), inlier_ratio, iou).outliers()
        assert np.flatnonzero(found).tolist() == [3] * outlier


@pytest.mark.parametrize(("error_deg", "outlier"), [(4, False), (8, False), (12, True), (90, True)])
def test_outliers_have_far_larger_errors_than_the_median_view(error_deg, outlier):
    median_deg = np.full(10, 2.0)
    median_deg[5] = error_deg
    found = ViewAgreement(median_deg, median_deg, np.full(10, 0.8), np.ones(10)).outliers()
    assert np.flatnonzero(found).tolist() == [5] * outlier


@pytest.mark.parametrize(
    ("mask_error", "suspect", "outlier"), [(0.02, False, False), (0.06, True, False), (0.12, True, True)]
)
def test_views_whose_silhouettes_fit_worse_are_suspects_and_far_worse_are_outliers(mask_error, suspect, outlier):
    iou = np.full(10, 0.99)
    iou[7] = 1 - mask_error
    of = ViewAgreement(np.full(10, 3.0), np.full(10, 2.0), np.full(10, 0.8), iou)
    assert np.flatnonzero(of.suspects()).tolist() == [7] * suspect
    assert np.flatnonzero(of.outliers()).tolist() == [7] * outlier


@pytest.mark.parametrize(("confidence", "name"), [(0.65, "doubtful"), (0.75, "ok")])
def test_views_that_all_agree_badly_with_the_surface_are_a_doubt(confidence, name):
    result = verdict(agreement(confidence={view: confidence for view in range(10)}))
    assert result.name == name
    assert [f"{confidence:.2f} on average" in reason for reason in result.reasons] == [True] * (name == "doubtful")

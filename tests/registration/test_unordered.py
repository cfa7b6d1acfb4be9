# SPDX-License-Identifier: Apache-2.0
"""Registration of views in no order, end to end: without poses, and with given poses that are wrong as a whole."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.registration import rotation_errors_deg
from helpers.scenes import capture
from helpers.view_graphs import SHUFFLED

from pmni_nerfstudio.registration.pipeline import Registration, register
from pmni_nerfstudio.registration.poses import Poses


def check(result: Registration, truth: Poses) -> None:
    assert result.verdict.name == "ok"
    assert result.start == "unordered views"
    assert [view.status for view in result.verdict.views] == len(truth) * ["ok"]
    assert rotation_errors_deg(Poses.from_c2w(result.c2w), truth).max() < 1


@pytest.mark.slow
def test_shuffled_views_without_poses():
    _, views, truth = capture(shape="figure", width=96, height=80)
    order = list(SHUFFLED)
    result = register(views.subset(order), None)
    check(result, truth.subset(order))
    assert result.verdict.reasons == ()
    assert len(result.hypotheses) > 0  # a ring was tried first
    # In a world with y up, about the object.
    up = -result.c2w[:, :3, 1].mean(axis=0)
    assert up[1] > 0.98 * np.linalg.norm(up)
    assert np.linalg.norm(result.c2w[:, :3, 3], axis=1).mean() == pytest.approx(15, rel=0.25)


@pytest.mark.slow
def test_mirrored_poses_are_replaced_and_named():
    """Given poses of a left-handed world, which no rotation of the world makes right."""
    scene, views, truth = capture(shape="figure", width=96, height=80)
    order = list(SHUFFLED)
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirrored = flip @ scene.c2w[order] @ flip
    assert rotation_errors_deg(Poses.from_c2w(mirrored), truth.subset(order)).max() > 60
    result = register(views.subset(order), mirrored)
    check(result, truth.subset(order))
    assert len(result.verdict.reasons) == 1
    assert "ignored" in result.verdict.reasons[0] and "mirrored" in result.verdict.reasons[0]

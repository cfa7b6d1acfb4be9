# SPDX-License-Identifier: Apache-2.0
"""A registration that goes on from the coarse result on disk, as after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.scenes import capture

from pmni_nerfstudio.geometry.pose_noise import perturb_poses
from pmni_nerfstudio.registration import pipeline
from pmni_nerfstudio.registration.alternation import AlternationSchedule, Level
from pmni_nerfstudio.registration.pipeline import RegistrationSettings, register

SETTINGS = RegistrationSettings(
    alternation=AlternationSchedule(
        levels=(
            Level(25, 1, blur=0.0166, huber=0.1, hull_votes=3, slack_voxels=1.0, points=500),
            Level(25, 1, hull_votes=2, slack_voxels=0.5, points=500),
        )
    )
)


def test_a_registration_taken_up_again_ends_like_one_that_was_never_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline, "find_symmetry", lambda surface: None)  # half the time, and a function of the surface
    _, views, truth = capture(views=6, width=36, height=30)
    views = replace(views, K=views.K * [[[1.02], [1.02], [1]]])  # a focal length to refine, which the file keeps too
    rough = perturb_poses(truth.c2w(), 4.0, 0.05, np.random.default_rng(0))
    partial = tmp_path / "coarse.npz"
    whole = register(views, rough, SETTINGS, partial=partial)
    seen: list[str] = []
    again = register(views, rough, SETTINGS, lambda stage, done, residual: seen.append(stage), partial=partial)
    assert seen and "depth maps" not in seen  # the coarse levels were not done again
    np.testing.assert_allclose(again.c2w, whole.c2w, rtol=0, atol=1e-12)
    np.testing.assert_allclose(again.surface.sdf, whole.surface.sdf, rtol=0, atol=1e-12)
    np.testing.assert_allclose(again.agreement.median_deg, whole.agreement.median_deg, rtol=0, atol=1e-9)
    assert again.verdict == whole.verdict and again.intrinsics == whole.intrinsics
    assert (again.start, again.hypotheses, again.pairwise_cost) == (whole.start, whole.hypotheses, whole.pairwise_cost)
    assert set(again.seconds) >= set(whole.seconds)

# SPDX-License-Identifier: Apache-2.0
"""Registration without poses: the right ring hypothesis wins, and its world is upright."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from helpers import scenes
from helpers.registration import rotation_errors_deg

from pmni_nerfstudio.registration.pairwise.integrated_depth import IntegratedDepthMaps
from pmni_nerfstudio.registration.pairwise.multiway import (
    PairwiseSchedule,
    integrate_at_working_resolution,
    poses_from_similarities,
    pyramid_level,
    refine,
)
from pmni_nerfstudio.registration.pairwise.ring_hypotheses import best_ring, ring, ring_hypotheses
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.views import Views

# Enough to tell which hypothesis wins.
COARSE = replace(PairwiseSchedule(), levels=PairwiseSchedule().levels[:2])


@lru_cache
def capture(elevation: float, clockwise: bool) -> tuple[Poses, Views, IntegratedDepthMaps]:
    """Ground-truth poses, views and integrated depth maps of a ring."""
    _, views, truth = scenes.capture(shape="figure", elevation=elevation, clockwise=clockwise, seed=8)
    return truth, views, integrate_at_working_resolution(views, COARSE)


@pytest.mark.parametrize(("elevation", "clockwise"), [(5, False), (45, True)])
def test_views_without_poses(elevation, clockwise):
    truth, views, maps = capture(elevation, clockwise)
    progress = []
    level = pyramid_level(maps, COARSE.levels[0], np.random.default_rng(0))
    state, initial, hypotheses = best_ring(maps, level, COARSE, lambda *a: progress.append(a[1]))
    result = refine(maps, state, initial, COARSE, 0)
    errors = rotation_errors_deg(result.poses, truth)
    assert errors.mean() < 5
    assert errors.max() < 10

    assert len(hypotheses) == 6
    best = min(hypotheses, key=lambda h: h.cost)
    assert best.name.startswith("clockwise" if clockwise else "counter-clockwise")
    assert not best.pruned
    assert sum(h.pruned for h in hypotheses) == 3
    wrong = [h.cost for h in hypotheses if h.name.startswith("clockwise") != clockwise]
    assert min(wrong) > best.cost + 0.05

    # y up: the cameras are at the true elevation above the plane y = 0, and the object fills the unit sphere.
    centers = result.poses.centers()
    centers = centers - centers.mean(axis=0) * [1, 0, 1]
    elevations = np.degrees(np.arcsin(centers[:, 1] / np.linalg.norm(centers, axis=1)))
    assert elevations.mean() == pytest.approx(elevation, abs=6)
    distances = np.linalg.norm(centers, axis=1)
    assert distances.mean() == pytest.approx(15, rel=0.25)
    assert progress == sorted(progress)


def test_registration_without_poses_is_deterministic():
    _, _, maps = capture(5, False)
    level = pyramid_level(maps, COARSE.levels[0], np.random.default_rng(0))
    (a, _, hypotheses), (b, _, again) = (best_ring(maps, level, COARSE) for _ in range(2))
    np.testing.assert_array_equal(a.R, b.R)
    assert hypotheses == again


def test_a_ring_looks_at_the_masks_centroids():
    _, views, maps = capture(45, True)
    poses = poses_from_similarities(maps, ring(maps, 30, clockwise=False))
    origin = np.einsum("nij,nj->ni", views.K, poses.t)
    for i, mask in enumerate(views.masks):
        y, x = np.nonzero(mask)
        np.testing.assert_allclose(origin[i, :2] / origin[i, 2], [x.mean(), y.mean()], atol=1e-6)
    centers = poses.centers()
    np.testing.assert_allclose(np.arcsin(centers[:, 1] / np.linalg.norm(centers, axis=1)), np.radians(30))
    # Counter-clockwise as seen from above (from +y, with z pointing down and x to the right), a twelfth at a time.
    azimuth = np.unwrap(np.arctan2(centers[:, 0], centers[:, 2]))
    np.testing.assert_allclose(np.diff(azimuth), 2 * np.pi / 12)
    # No camera is upside down.
    assert (poses.R[:, 1, 1] < -0.5).all()


def test_hypotheses_have_different_names():
    _, _, maps = capture(5, False)
    names = [name for name, _ in ring_hypotheses(maps)]
    assert len(set(names)) == len(names) == 6
    assert "clockwise, 30 deg up" in names

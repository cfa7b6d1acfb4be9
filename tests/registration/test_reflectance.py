# SPDX-License-Identifier: Apache-2.0
"""Reflectance bias as an unknown of the bundle adjustment: its derivatives, its recovery, and cases left alone."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.registration import affine_normals, bundle_problem, rotation_errors_deg, true_surface, turned
from helpers.scenes import capture

from pmni_nerfstudio.geometry.cameras import pixel_directions, pixel_grid
from pmni_nerfstudio.geometry.reflectance_bias import COEFFICIENTS, ReflectanceBias
from pmni_nerfstudio.registration.alternation import AlternationSchedule, Level, alternate
from pmni_nerfstudio.registration.bundle_adjustment.reflectance import BiasedPoses, BiasProblem
from pmni_nerfstudio.registration.reflectance import (
    EstimatedBias,
    ReflectanceOptions,
    bias_from_record,
    estimate_bias,
    unknown_bias,
)
from pmni_nerfstudio.registration.views import Views

GLOSSY = ReflectanceBias(tuple(np.deg2rad([3.0, 5.0, 3.0, 1.5, 2.0, 2.0, 1.0])))
"""About what photometric stereo makes of rough plastic."""
QUICK = ReflectanceOptions(points=1500)
COARSE = AlternationSchedule(levels=(Level(49, 4, hull_votes=3, slack_voxels=1.0),))


def biased(views: Views, bias: ReflectanceBias) -> Views:
    """Views from whose normals the removal of a bias gives the true ones."""
    maps = []
    for normals, valid, K in zip(views.normals, views.valid, views.K):
        given = normals.copy()
        to_view = -pixel_directions(K, pixel_grid(views.width, views.height)[valid])
        to_view /= np.linalg.norm(to_view, axis=1, keepdims=True)
        true = normals[valid].astype(float)
        cosine = (true * to_view).sum(axis=1).clip(-1, 1)
        outward = true - cosine[:, None] * to_view
        outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-9)
        angle = observed = np.arccos(cosine)
        for _ in range(50):  # observed angle minus the curve there is the true angle
            observed = angle + bias.at(observed)
        given[valid] = np.cos(observed)[:, None] * to_view + np.sin(observed)[:, None] * outward
        maps.append(given)
    return replace(views, normals=np.stack(maps))


def test_removal_undoes_the_bias():
    _, views, _ = capture()
    again = EstimatedBias(GLOSSY, 2.0, 0.1, (), "").removed_from(biased(views, GLOSSY))
    difference = np.linalg.norm(again.normals - views.normals, axis=-1)[views.valid]
    assert np.quantile(difference, 0.99) < 1e-3  # next to the axis, the tilt has no direction


@pytest.mark.parametrize("fixed_poses", [False, True])
def test_gradient_is_that_of_the_cost(fixed_poses):
    _, views, truth = capture()
    views, poses = affine_normals(views), turned(truth, 2.0)
    bundle = bundle_problem(poses, views=views, silhouette_weight=0.0, depth_sigma_voxels=1e-4)
    whole, state = BiasProblem(bundle, fixed_poses), BiasedPoses(poses, np.array(GLOSSY.coefficients))
    step, first = 2e-3, 6 * len(views)

    def cost(delta: np.ndarray) -> float:
        return whole.linearize(whole.retract(state, delta)).cost

    gradient = whole.linearize(state).gradient
    directions = step * np.eye(first + COEFFICIENTS)[first:]
    slopes = [(cost(d) - cost(-d)) / (2 * step) for d in directions]
    np.testing.assert_allclose(gradient[first:], slopes, atol=1e-4 * np.abs(slopes).max())
    assert fixed_poses == (not gradient[:first].any())


def test_the_bias_and_the_poses_that_it_spoils_come_back():
    _, views, truth = capture()
    glossy = biased(views, GLOSSY)
    spoilt, surface = alternate(glossy, truth, COARSE)
    included = np.arange(len(views)) != 5
    poses, found = estimate_bias(glossy, spoilt, surface, included, options=QUICK)
    assert found.applied and found.note is not None
    angle = np.deg2rad(np.arange(15, 75, 5.0))
    assert np.rad2deg(np.abs(found.bias.at(angle) - GLOSSY.at(angle))).max() < 0.6
    before, after = (rotation_errors_deg(p, truth)[included].mean() for p in (spoilt, poses))
    assert after < 0.3 and after < 0.5 * before
    np.testing.assert_allclose(found.curve_deg[3], np.rad2deg(found.bias.at(np.deg2rad(30.0))), atol=1e-6)


def test_the_bias_comes_back_at_known_poses():
    _, views, truth = capture()
    poses, found = estimate_bias(
        biased(views, GLOSSY), truth, true_surface(), np.ones(len(views), dtype=bool), options=QUICK, fixed_poses=True
    )
    angle = np.deg2rad(np.arange(15, 75, 5.0))
    assert np.rad2deg(np.abs(found.bias.at(angle) - GLOSSY.at(angle))).max() < 0.6
    np.testing.assert_allclose(poses.c2w(), truth.c2w(), atol=1e-9)


def test_a_bias_too_large_or_too_uncertain_for_gloss_stays_and_is_doubted():
    _, views, truth = capture()
    options = replace(QUICK, max_rms_deg=1.5)
    everything = np.ones(len(views), dtype=bool)
    glossy = biased(views, GLOSSY)
    poses, found = estimate_bias(glossy, truth, true_surface(), everything, options=options)
    assert poses is truth and not found.applied and "too large" in found.reason
    assert found.note is None and found.warning is not None
    uncertain = estimate_bias(glossy, truth, true_surface(), everything, options=replace(QUICK, significance=1e6))[1]
    assert not uncertain.applied and "uncertain" in uncertain.reason and uncertain.warning is not None
    assert found.rms_deg > 1.5 and found.statistics()["curve_deg"][3][0] == 30


def test_exact_normals_stay():
    _, views, truth = capture()
    poses, found = estimate_bias(views, truth, true_surface(), np.ones(len(views), dtype=bool), options=QUICK)
    assert poses is truth and not found.applied and found.note is None
    assert found.rms_deg < 0.5 and found.removed_from(views) is views


def test_estimation_can_be_switched_off_and_needs_views():
    _, views, truth = capture()
    few = np.arange(len(views)) < 4
    for included, options in ((~few, ReflectanceOptions(enabled=False)), (few, QUICK)):
        poses, found = estimate_bias(views, truth, true_surface(), included, options=options)
        assert poses is truth and not found.applied
        assert found.statistics()["rms_deg"] is None


@pytest.mark.parametrize("found", [unknown_bias("why"), EstimatedBias(GLOSSY, 2.5, 0.1, (0.0, 1.0), "agreed")])
def test_estimates_are_restored_from_json(found: EstimatedBias):
    again = bias_from_record(json.loads(json.dumps(dataclasses.asdict(found))))
    assert again.bias == found.bias and again.statistics() == found.statistics() and again.note == found.note
    with pytest.raises(ValueError, match="coefficients"):
        bias_from_record(dataclasses.asdict(found) | {"bias": {"coefficients": [1.0]}})

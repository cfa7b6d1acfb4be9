# SPDX-License-Identifier: Apache-2.0
"""Relative poses of pairs of views of which nothing is known, against the truth and against finite differences."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from helpers.pairwise import random_similarities
from helpers.scenes import Ellipsoid, fitting_intrinsics, look_at, render_maps
from helpers.view_graphs import SHUFFLED, KnownViews, figure

from pmni_nerfstudio.geometry.sim3 import Sim3, angles_deg
from pmni_nerfstudio.registration.pairwise.integrated_depth import PyramidLevel, integrate_views, make_level
from pmni_nerfstudio.registration.pairwise.relative_pose import RelativePoseOptions, RelativePoseSearch
from pmni_nerfstudio.registration.pairwise.residuals import Kernels, PairwiseProblem
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.threads import one_thread

FIRST, SECOND = np.array([0]), np.array([1])
KERNELS = Kernels(0.3, 0.15, 0.2)
IDENTITY = (np.eye(3)[None], np.zeros((1, 3)), np.ones(1))


@pytest.fixture(autouse=True)
def single_thread():
    with one_thread():
        yield


@lru_cache
def shuffled() -> tuple[KnownViews, RelativePoseSearch]:
    """Shuffled views of a figure, the first and the seventh of them upside down."""
    known = figure(SHUFFLED, upside_down=(0, 6))
    return known, RelativePoseSearch(known.level)


def true_relative(known: KnownViews, i: int, j: int) -> np.ndarray:
    """Rotation (1, 3, 3) from the camera axes of view i to those of view j."""
    R = known.c2w[:, :3, :3]
    return (R[j].T @ R[i])[None]


# Gauss-Newton steps


@lru_cache
def ellipsoid() -> tuple[PyramidLevel, Sim3]:
    """Fine maps of an ellipsoid from 15 degrees apart, and their true relative pose.

    All points face both cameras, so that the visible ones are the same at all poses near the true one.
    """
    size = (360, 320)
    azimuth = np.radians([0, 15])
    eyes = 15 * np.stack([np.cos(azimuth), np.sin(azimuth), [0.3, 0.3]], axis=1)
    c2w = np.stack([look_at(eye) for eye in eyes])
    K = np.tile(fitting_intrinsics(*size, 15.0), (2, 1, 1))
    surface = Ellipsoid((0.05, -0.03, 0.02), (0.9, 0.6, 0.75))
    masks, normals, depths = render_maps(surface.intersect, K, c2w, *size)
    rendered = iter(depths)
    maps = integrate_views(Views(("a", "b"), normals.astype(np.float32), masks, K), lambda *_: next(rendered))
    scale = np.array([np.nanmedian(d / m) for d, m in zip(depths, maps.depths)])
    R = c2w[:, :3, :3]
    pose = Sim3(R, c2w[:, :3, 3] + scale[:, None] * np.einsum("nij,nj->ni", R, maps.centers), scale)
    level = make_level(maps, 1, 400, np.random.default_rng(0))
    facing = (level.normals[..., 2] < -np.cos(np.radians(35))).float()
    assert facing.sum(axis=1).min() > 100
    return replace(level, weights=facing), pose[[1]].inverse().compose(pose[[0]])


def cost(search: RelativePoseSearch, relative: Sim3) -> float:
    return float(search.cost(FIRST, SECOND, relative)[0])


def test_the_true_relative_pose_costs_least():
    level, truth = ellipsoid()
    search = RelativePoseSearch(level, RelativePoseOptions(kernels=KERNELS))
    assert cost(search, truth) < 0.01
    for seed in range(8):
        off = truth.retract(0.06 * np.random.default_rng(seed).standard_normal((1, 7)))
        assert cost(search, off) > cost(search, truth) + 0.02


@pytest.mark.parametrize("seed", range(3))
def test_steps_follow_the_gradient_of_the_cost(seed):
    """The gradient is by finite differences, the Hessian that of multiway registration with the target fixed; a step
    solves their equations but for a little damping."""
    level, truth = ellipsoid()
    search = RelativePoseSearch(level, RelativePoseOptions(kernels=KERNELS, max_step=100))
    relative = truth.compose(random_similarities(1, 0.03, np.random.default_rng(seed)))
    costs, steps = search._linearize(level, FIRST, SECOND, relative, KERNELS)
    assert costs[0] == pytest.approx(cost(search, relative), rel=1e-5)
    assert costs[0] > 0.005

    h = 2e-3
    gradient = np.array(
        [
            (cost(search, relative.retract(h * e[None])) - cost(search, relative.retract(-h * e[None]))) / (2 * h)
            for e in np.eye(7)
        ]
    )
    both = Sim3(*(np.concatenate(parts) for parts in zip((relative.R, relative.t, relative.s), IDENTITY)))
    hessian = PairwiseProblem(level, np.array([[0, 1], [1, 0]]), KERNELS, free=[0]).linearize(both).hessian
    rest = -(gradient + hessian @ steps[0])
    damping = rest @ steps[0] / (steps[0] @ steps[0])
    assert 0 < damping < 0.05 * np.trace(hessian) / 7
    np.testing.assert_allclose(rest, damping * steps[0], atol=0.01 * np.linalg.norm(gradient))
    assert cost(search, relative.retract(steps)) < 0.3 * costs[0]


def test_steps_are_limited_and_keep_their_direction():
    level, truth = ellipsoid()
    relative = truth.retract(0.1 * np.random.default_rng(5).standard_normal((1, 7)))
    free, limited = (
        RelativePoseSearch(level, RelativePoseOptions(max_step=largest))._linearize(
            level, FIRST, SECOND, relative, KERNELS
        )[1][0]
        for largest in (100.0, 0.02)
    )
    assert np.linalg.norm(free) > 0.05
    assert np.linalg.norm(limited) == pytest.approx(0.02)
    np.testing.assert_allclose(limited / 0.02, free / np.linalg.norm(free), atol=1e-6)


def test_descent_finds_the_truth():
    level, truth = ellipsoid()
    search = RelativePoseSearch(level, RelativePoseOptions(kernels=KERNELS))
    start = truth[np.zeros(6, int)].retract(0.07 * np.random.default_rng(2).standard_normal((6, 7)))
    i, j = np.zeros(6, int), np.ones(6, int)
    moved, costs = search._descend(level, i, j, start, KERNELS, iterations=8)
    assert search.cost(i, j, start).min() > 0.1 and costs.max() < 0.02
    # A smooth ellipsoid may turn a little at almost no cost.
    before, after = angles_deg(start.R, truth.R), angles_deg(moved.R, truth.R)
    assert before.mean() > 2 * after.mean() and after.max() < 4


def test_descent_never_raises_the_cost():
    """From poses that are so wrong that many full steps would."""
    known, search = shuffled()
    rng = np.random.default_rng(4)
    i, j = rng.integers(0, 6, 40), rng.integers(6, 12, 40)
    start, kernels = random_similarities(40, 0.5, rng), search.options.kernels
    costs = [search.cost(i, j, start)]
    for iterations in range(1, 6):
        moved, reached = search._descend(known.level, i, j, start, kernels, iterations)
        np.testing.assert_allclose(reached, search.cost(i, j, moved), atol=1e-5)
        costs.append(reached)
    assert (np.diff(costs, axis=0) <= 1e-5).all()
    assert (costs[-1] < costs[0] - 0.01).mean() > 0.8


def test_poses_without_overlap_cost_as_much_as_disagreement():
    level, truth = ellipsoid()
    search = RelativePoseSearch(level)
    away = replace(truth, t=truth.t + np.array([[500.0, 0, 0]]))
    assert cost(search, away) == pytest.approx(1)


# Search


def test_the_best_hypothesis_of_near_views_is_right():
    known, search = shuffled()
    pairs = known.ring_neighbors(30)
    assert len(pairs) >= 4 and any({0, 6} & set(pair) for pair in pairs)
    for (i, j), found in zip(pairs, search.search_pairs(np.array(pairs))):
        assert angles_deg(found.relative.R[[0]], true_relative(known, i, j))[0] < 12
        # Its cost is near the truth's.
        best = search.cost(np.array([i]), np.array([j]), found.relative[[0]])[0]
        truth = known.truth[[j]].inverse().compose(known.truth[[i]])
        assert best <= search.cost(np.array([i]), np.array([j]), truth)[0] + 0.03


def test_hypotheses_are_sorted_and_separated():
    known, search = shuffled()
    for pair in ((0, 1), (2, 7), (3, 11)):
        found = search.search(*pair)
        R = found.relative.R
        assert 2 <= len(R) == len(found.costs) <= search.options.hypotheses
        assert (np.diff(found.costs) >= 0).all()
        apart = [angles_deg(R[[a]], R[[b]])[0] for a in range(len(R)) for b in range(a)]
        assert min(apart) > search.options.separation_deg
        i, j = np.full(len(R), pair[0]), np.full(len(R), pair[1])
        np.testing.assert_allclose(found.costs, search.cost(i, j, found.relative), atol=1e-5)
        assert (found.costs > 0).all() and (found.costs < 1).all()


def test_the_inverse_is_the_same_pair_from_the_other_side():
    known, search = shuffled()
    i, j = known.ring_neighbors(30)[0]
    found = search.search(i, j)
    inverse = found.inverse()
    points = np.random.default_rng(0).standard_normal((len(found.costs), 3))

    def applied(similarity: Sim3, x: np.ndarray) -> np.ndarray:
        return similarity.s[:, None] * np.einsum("nij,nj->ni", similarity.R, x) + similarity.t

    np.testing.assert_allclose(applied(inverse.relative, applied(found.relative, points)), points, atol=1e-9)
    np.testing.assert_array_equal(inverse.costs, found.costs)
    forward, backward = np.full(len(points), i), np.full(len(points), j)
    np.testing.assert_allclose(search.cost(backward, forward, inverse.relative), found.costs, atol=1e-4)


def test_many_pairs_equal_single_pairs():
    known, search = shuffled()
    pairs = np.array([(0, 1), (5, 2), (3, 8), (9, 4), (10, 11)])
    progress: list[float] = []
    for (i, j), found in zip(pairs.tolist(), search.search_pairs(pairs, progress.append), strict=True):
        one = search.search(i, j)
        assert len(one.costs) == len(found.costs)
        np.testing.assert_allclose(found.costs, one.costs, atol=1e-4)
        assert angles_deg(found.relative.R, one.relative.R).max() < 0.1
    assert progress == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])


def test_the_cost_of_many_pairs_equals_that_of_single_pairs():
    known, search = shuffled()
    rng = np.random.default_rng(4)
    i, j = rng.integers(0, 6, 20), rng.integers(6, 12, 20)
    relative = random_similarities(20, 0.4, rng)
    single = [search.cost(i[[k]], j[[k]], relative[[k]])[0] for k in range(20)]
    np.testing.assert_allclose(search.cost(i, j, relative), single, atol=1e-5)
    assert np.std(single) > 0.01

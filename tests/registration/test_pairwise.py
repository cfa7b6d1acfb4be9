# SPDX-License-Identifier: Apache-2.0
"""Pairs of reliefs: residuals against a slow twin, derivatives against differences, poses that come back from noise."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.sim3 import Similarities, angles_deg, rotation_grid
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria
from pmni_nerfstudio.registration.pairwise.integrated_depth import (
    ReliefLevel,
    Reliefs,
    make_level,
    make_reliefs,
    working_views,
)
from pmni_nerfstudio.registration.pairwise.multiway import (
    PairwiseSchedule,
    choose_pairs,
    integrated,
    poses_of,
    register_pairwise,
    settle,
)
from pmni_nerfstudio.registration.pairwise.outliers import stuck_views, try_again
from pmni_nerfstudio.registration.pairwise.residuals import Kernels, PairwiseProblem, pair_terms
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.synth import SynthConfig, SynthScene, make_scene

KERNELS = Kernels(0.3, 0.15, 0.15)


@lru_cache
def capture(shape: str = "figure", views: int = 10, seed: int = 3) -> tuple[SynthScene, Views]:
    scene = make_scene(
        SynthConfig(
            shape=shape,
            views=views,
            width=80,
            height=68,
            jitter=1,
            rotation_noise_deg=15,
            translation_noise=0.5,
            seed=seed,
        )
    )
    return scene, Views(scene.names, scene.normals, scene.masks, np.tile(scene.K, (views, 1, 1)))


@lru_cache
def reliefs_of_capture() -> Reliefs:
    return integrated(capture()[1], PairwiseSchedule())


@lru_cache
def true_reliefs() -> tuple[Reliefs, Similarities]:
    """With true depths, and the similarities that lay them onto each other."""
    scene, views = capture()
    depths = iter(scene.depth)
    # A factor a view, as integration leaves it open.
    reliefs = make_reliefs(views, lambda normals, mask, K: 0.3 * next(depths))
    scale = np.array([np.nanmedian(d / r) for d, r in zip(scene.depth, reliefs.depths)])
    R = scene.c2w[:, :3, :3]
    t = scene.c2w[:, :3, 3] + scale[:, None] * np.einsum("nij,nj->ni", R, reliefs.centres)
    return reliefs, Similarities(R, t, scale)


def errors_deg(poses: Poses, c2w: np.ndarray) -> np.ndarray:
    truth = Poses.from_c2w(c2w)
    return angles_deg(poses.transformed(*align(poses, truth)).R, truth.R)


def random_similarities(count: int, size: float, rng: np.random.Generator) -> Similarities:
    R = Rotation.from_rotvec(size * rng.standard_normal((count, 3))).as_matrix()
    return Similarities(R, size * rng.standard_normal((count, 3)), np.exp(size * rng.standard_normal(count)))


# Similarities


def test_similarities_compose_and_invert():
    rng = np.random.default_rng(0)
    a, b = random_similarities(4, 1.0, rng), random_similarities(4, 1.0, rng)
    x = rng.standard_normal((4, 3))

    def apply(T: Similarities, points: np.ndarray) -> np.ndarray:
        return T.s[:, None] * np.einsum("nij,nj->ni", T.R, points) + T.t

    np.testing.assert_allclose(apply(a.compose(b), x), apply(a, apply(b, x)), atol=1e-12)
    np.testing.assert_allclose(apply(a.inverse(), apply(a, x)), x, atol=1e-12)


def test_adjoint_takes_twists_of_the_domain_to_the_range():
    rng = np.random.default_rng(1)
    T, twist = random_similarities(3, 1.0, rng), 1e-6 * rng.standard_normal((3, 7))
    identity = Similarities(np.tile(np.eye(3), (3, 1, 1)), np.zeros((3, 3)), np.ones(3))
    moved_first = T.retract(twist)
    moved_after = identity.retract(np.einsum("nab,nb->na", T.adjoint(), twist)).compose(T)
    for one, other in zip((moved_first.R, moved_first.t, moved_first.s), (moved_after.R, moved_after.t, moved_after.s)):
        np.testing.assert_allclose(one, other, atol=1e-10)
    assert np.abs(moved_first.t - T.t).max() > 1e-7


def test_rotation_grid_leaves_no_gaps():
    grid = rotation_grid(1000)
    np.testing.assert_allclose(grid @ np.swapaxes(grid, 1, 2), np.tile(np.eye(3), (1000, 1, 1)), atol=1e-12)
    anywhere = Rotation.random(200, random_state=0).as_matrix()
    nearest = [angles_deg(grid, np.broadcast_to(r, grid.shape)).min() for r in anywhere]
    assert max(nearest) < 25


# Residuals


def slow_terms(level: ReliefLevel, i: int, j: int, T: Similarities, k: Kernels) -> tuple[float, float]:
    """Loss and weight of one pair, point by point."""
    n = len(level.points)
    table = level.table.double().numpy().reshape(n, level.height, level.width, 5)
    K, centre = level.K[j].double().numpy(), level.centres[j].double().numpy()
    total, total_weight = 0.0, 0.0
    for x, normal, believed in zip(*(a[i].double().numpy() for a in (level.points, level.normals, level.weights))):
        y = T.s[0] * T.R[0] @ x + T.t[0]
        m = T.R[0] @ normal
        point = y + centre
        u, v, w = K @ point
        u, v = u / w, v / w
        if not (0 <= u <= level.width - 1 and 0 <= v <= level.height - 1):
            continue
        c, r = min(int(u), level.width - 2), min(int(v), level.height - 2)
        a, b = u - c, v - r
        at = table[j]
        value = (1 - b) * ((1 - a) * at[r, c] + a * at[r, c + 1]) + b * ((1 - a) * at[r + 1, c] + a * at[r + 1, c + 1])
        surface = value[3] * np.linalg.solve(K, [u, v, 1.0])
        facing = np.clip((-(m @ point) / np.linalg.norm(point) - 0.1) / 0.3, 0, 1) * believed
        on_mask = np.clip(-value[4] / level.pixel, 0, 1)
        ratio = ((m - value[:3]) ** 2).sum() / k.normal**2 + (value[:3] @ (point - surface)) ** 2 / k.depth**2
        beyond = max(value[4], 0) ** 2
        total += facing * (1 - on_mask / (1 + ratio)) + k.outline_weight * believed * beyond / (beyond + k.outline**2)
        total_weight += facing + k.outline_weight * believed
    return total, total_weight


@pytest.mark.parametrize("size", [0.0, 0.15, 0.6])
def test_batched_residuals_are_those_of_the_slow_twin(size):
    reliefs, truth = true_reliefs()
    level = make_level(reliefs, 2, 90, np.random.default_rng(0))
    state = truth.retract(size * np.random.default_rng(1).standard_normal((10, 7)))
    pairs = np.array([[0, 1], [1, 0], [4, 6], [9, 2]])
    problem = PairwiseProblem(level, pairs, KERNELS)
    terms, relative = problem.terms(state)
    for q, (i, j) in enumerate(pairs):
        loss, weight = slow_terms(level, i, j, relative[[q]], KERNELS)
        assert terms.loss[q] == pytest.approx(loss, rel=1e-3)
        assert terms.weight[q] == pytest.approx(weight, rel=1e-3)
    without = problem.terms(state, derivatives=False)[0]
    np.testing.assert_array_equal(without.loss, terms.loss)


def sphere_level(radius: float = 0.8, beyond: bool = False) -> ReliefLevel:
    """Two views of a sphere in closed form; points that face their view and are far from the outline.

    With `beyond`, the second view's mask ends short of the points, so that all of them are beside it.
    """
    size, distance, focal = 101, 12.0, 600.0
    K = np.array([[focal, 0.7, 50.3], [0, 0.97 * focal, 49.6], [0, 0, 1]])
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(K).T
    centre = np.array([0.05, -0.03, distance])
    along = rays @ centre / (rays**2).sum(-1)
    gap = radius**2 - ((along[..., None] * rays - centre) ** 2).sum(-1)
    depth = along - np.sqrt(np.maximum(gap, 1e-9) / (rays**2).sum(-1))
    normals = depth[..., None] * rays - centre
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    outside = (np.linalg.norm(along[..., None] * rays - centre, axis=-1) - (0.05 if beyond else radius))[..., None]
    table = np.concatenate([normals, depth[..., None], outside], axis=-1).reshape(-1, 5)
    picked = np.random.default_rng(0).permutation(np.flatnonzero((gap > 0.6 * radius**2).ravel()))
    if beyond:
        picked = picked[outside.ravel()[picked] > 0.25]
    picked = picked[:400]
    points = (depth[..., None] * rays - centre).reshape(-1, 3)[picked]
    points *= np.random.default_rng(1).uniform(0.97, 1.03, (400, 1))  # depths disagree a little

    def both(a: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([a, a])).float()

    return ReliefLevel(
        table=both(table).reshape(-1, 5),
        height=size,
        width=size,
        K=both(K),
        centres=both(centre),
        pixel=distance / focal,
        points=both(points),
        normals=both(normals.reshape(-1, 3)[picked]),
        weights=both(np.ones(400)),
    )


@pytest.mark.parametrize("beyond", [False, True])
def test_gradient_is_that_of_the_loss(beyond):
    level = sphere_level(beyond=beyond)
    kernels = Kernels(0.2, 0.1, 0.3)
    one, other = np.array([0]), np.array([1])
    T = random_similarities(1, 0.08, np.random.default_rng(2))
    gradient = pair_terms(level, one, other, T, kernels).gradient
    assert gradient is not None
    identity = Similarities(np.eye(3)[None], np.zeros((1, 3)), np.ones(1))

    def loss(twist: np.ndarray) -> float:
        return pair_terms(level, one, other, identity.retract(twist[None]).compose(T), kernels, False).loss[0]

    step = 5e-3
    numeric = np.array([(loss(step * e) - loss(-step * e)) / (2 * step) for e in np.eye(7)])
    assert np.linalg.norm(numeric) > 1
    # The derivatives are those of r^2 / 2.
    np.testing.assert_allclose(2 * gradient[0], numeric, atol=0.02 * np.linalg.norm(numeric))


def test_views_gradient_and_hessian_follow_from_the_pairs():
    level, kernels = sphere_level(), Kernels(0.2, 0.1, 0.3)
    state = random_similarities(2, 0.05, np.random.default_rng(5))
    problem = PairwiseProblem(level, np.array([[0, 1], [1, 0]]), kernels)
    linear = problem.linearize(state)
    step = 5e-3
    numeric = np.array(
        [
            (problem.linearize(problem.retract(state, e)).cost - problem.linearize(problem.retract(state, -e)).cost)
            / (2 * step)
            for e in step * np.eye(14)
        ]
    )
    np.testing.assert_allclose(linear.gradient, numeric, atol=0.02 * np.linalg.norm(numeric))
    np.testing.assert_allclose(linear.hessian, linear.hessian.T, atol=1e-6 * np.abs(linear.hessian).max())
    assert np.linalg.eigvalsh(linear.hessian).min() > -1e-6 * np.linalg.eigvalsh(linear.hessian).max()
    # All views moved alike: nothing changes.
    alike = np.linalg.inv(state.adjoint()) @ np.random.default_rng(6).standard_normal(7)
    assert np.abs(linear.hessian @ alike.ravel()).max() < 1e-3 * np.abs(linear.hessian).max() * np.abs(alike).max()
    held = PairwiseProblem(level, np.array([[0, 1], [1, 0]]), kernels, free=[1]).linearize(state)
    np.testing.assert_allclose(held.hessian, linear.hessian[7:, 7:])
    np.testing.assert_allclose(held.gradient, linear.gradient[7:])


def test_true_poses_cost_less_than_any_near_them():
    reliefs, truth = true_reliefs()
    level = make_level(reliefs, 1, 300, np.random.default_rng(0))
    problem = PairwiseProblem(level, choose_pairs(truth.R, 60, 10, 4), KERNELS)
    best = problem.linearize(truth).cost
    for seed in range(5):
        off = np.random.default_rng(seed).standard_normal((10, 7)) * 0.06
        assert problem.linearize(truth.retract(off)).cost > best + 0.02
    _, inliers = problem.view_costs(truth)
    assert inliers.min() > 0.6


def test_what_falls_off_the_frame_is_unknown():
    reliefs, truth = true_reliefs()
    level = make_level(reliefs, 1, 300, np.random.default_rng(0))
    away = truth.replaced(1, replace(truth[[1]], t=truth.t[[1]] + 10 * truth.R[[1], :, 0]))
    terms, _ = PairwiseProblem(level, np.array([[0, 1]]), KERNELS).terms(away)
    assert (terms.loss[0], terms.weight[0]) == (0, 0)


# Choice of pairs


def ring_rotations(count: int) -> np.ndarray:
    return Rotation.from_rotvec(np.radians(360 / count) * np.arange(count)[:, None] * [0, 1, 0]).as_matrix()


@pytest.mark.parametrize(("views", "neighbours"), [(5, 4), (20, 6), (72, 10)])
def test_pairs_of_a_ring(views, neighbours):
    R = ring_rotations(views)
    pairs = choose_pairs(R, 60, 10, 4 if views > 5 else 2)
    assert {tuple(p) for p in pairs} == {tuple(p[::-1]) for p in pairs}
    assert (pairs[:, 0] != pairs[:, 1]).all()
    counts = np.bincount(pairs[:, 0], minlength=views)
    assert counts.min() >= min(neighbours, 2 if views == 5 else neighbours)
    assert counts.max() <= 2 * 10
    apart = angles_deg(R[pairs[:, 0]], R[pairs[:, 1]])
    assert apart.max() < (73 if views == 5 else 60.1)
    if views == 72:  # not the nearest alone, which would let errors add up round the ring
        assert apart.max() > 50


# Registration


def test_poses_come_back_from_noise():
    scene, views = capture()
    start = Poses.from_c2w(scene.c2w_rough)
    told = []
    result = register_pairwise(
        views, start, on_progress=lambda stage, done, cost: told.append((done, cost)), reliefs=reliefs_of_capture()
    )
    before, after = errors_deg(start, scene.c2w), errors_deg(result.poses, scene.c2w)
    assert before.mean() > 8
    assert after.mean() < 1.5
    assert after.max() < 3
    assert result.cost < 0.4
    assert result.inliers.min() > 0.25
    # In the world of the start, whose scale is right on the mean.
    assert np.linalg.norm(result.poses.centres(), axis=1).mean() == pytest.approx(15, rel=0.1)
    scale = align(result.poses, start)[0]
    assert scale == pytest.approx(1, abs=1e-3)
    done = [d for d, _ in told]
    assert done == sorted(done)
    assert 0 < done[0] <= done[-1] <= 1
    again = register_pairwise(views, start, reliefs=reliefs_of_capture())
    np.testing.assert_array_equal(again.poses.R, result.poses.R)


def test_five_views():
    scene, views = capture(views=5, seed=4)
    result = register_pairwise(views, Poses.from_c2w(scene.c2w_rough))
    assert errors_deg(result.poses, scene.c2w).max() < 4


def test_a_stuck_view_is_found_and_placed():
    reliefs, truth = true_reliefs()
    schedule = PairwiseSchedule()
    spec = schedule.levels[1]
    level = make_level(reliefs, 2, 300, np.random.default_rng(0))
    turned = Rotation.from_euler("xyz", [20, 55, 30], degrees=True).as_matrix()[None]
    lost = truth.replaced(4, replace(truth[[4]], R=turned @ truth.R[[4]]))
    problem = PairwiseProblem(level, choose_pairs(lost.R, 60, 10, 4), spec.kernels)
    stuck = stuck_views(problem, lost)
    assert stuck.tolist() == [4]
    state, moved = try_again(level, lost, np.array([4]), lost.R, spec.kernels, Criteria(12, damping_floor=1e-4))
    assert moved == [4]
    assert angles_deg(state.R[[4]], truth.R[[4]])[0] < 5
    np.testing.assert_array_equal(state.R[:4], truth.R[:4])


def test_a_view_in_its_place_stays():
    reliefs, truth = true_reliefs()
    level = make_level(reliefs, 2, 300, np.random.default_rng(0))
    kernels = PairwiseSchedule().levels[1].kernels
    state, moved = try_again(level, truth, np.array([2, 7]), truth.R, kernels, Criteria(12, damping_floor=1e-4))
    assert moved == []
    np.testing.assert_array_equal(state.R, truth.R)


def test_settled_poses_of_true_depths_are_true():
    reliefs, truth = true_reliefs()
    scene, _ = capture()
    level = make_level(reliefs, 1, 400, np.random.default_rng(0))
    schedule = PairwiseSchedule()
    off = truth.retract(0.02 * np.random.default_rng(0).standard_normal((10, 7)))
    state, _, _ = settle(level, schedule.levels[-1], off, schedule)
    before, after = errors_deg(poses_of(reliefs, off), scene.c2w), errors_deg(poses_of(reliefs, state), scene.c2w)
    assert before.mean() > 1
    assert after.mean() < 0.15


def test_working_resolution():
    _, views = capture()
    small = working_views(views, 40, 8000)
    assert (small.width, small.height) == (40, 34)
    assert working_views(views, 160, 8000).width == 80
    pixels = int(views.masks.sum(axis=(1, 2)).mean())
    assert working_views(views, 160, pixels // 2).width == 40  # a view that fills its frame


def test_as_many_poses_as_views():
    scene, views = capture()
    with pytest.raises(ValueError, match="start: 9 poses for 10 views"):
        register_pairwise(views, Poses.from_c2w(scene.c2w_rough[:9]))

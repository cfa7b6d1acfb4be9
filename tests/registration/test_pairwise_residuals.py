# SPDX-License-Identifier: Apache-2.0
"""Residuals of pairs of depth maps, against planes and spheres in closed form; their derivatives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.holes import views_with_holes
from helpers.pairwise import random_similarities, true_maps
from helpers.scenes import capture
from scipy.ndimage import map_coordinates

from pmni_nerfstudio.geometry.cameras import pixel_directions, pixel_grid, project
from pmni_nerfstudio.geometry.sim3 import Sim3
from pmni_nerfstudio.integration.bilateral import integrate_normals
from pmni_nerfstudio.registration.pairwise import residuals
from pmni_nerfstudio.registration.pairwise.integrated_depth import (
    PyramidLevel,
    facing_weight,
    integrate_views,
    make_level,
)
from pmni_nerfstudio.registration.pairwise.pair_selection import choose_pairs
from pmni_nerfstudio.registration.pairwise.residuals import Kernels, PairwiseProblem, pair_terms

KERNELS = Kernels(0.3, 0.15, 0.15)
IDENTITY = Sim3(np.eye(3)[None], np.zeros((1, 3)), np.ones(1))
FIRST, SECOND = np.array([0]), np.array([1])


def both(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([array, array])).float()


def plane_level(contour_distance: float = -1.0, tilt_deg: float = 0.0, known: float | None = None) -> PyramidLevel:
    """Two equal views of a plane parallel to the image, with 50 points half a unit behind the object's center.

    Args:
        contour_distance: signed distance to the mask's contour, the same at all pixels.
        tilt_deg: angle between the points' normals and the plane's normal.
        known: the sixth channel, the same at all pixels; without it there is none.
    """
    size, depth, focal = 41, 12.0, 600.0
    K = np.array([[focal, 0.5, 20.2], [0, 0.9 * focal, 19.7], [0, 0, 1]])
    table = np.tile([0.0, 0.0, -1.0, depth, contour_distance], (size * size, 1))
    if known is not None:
        table = np.concatenate([table, np.full((len(table), 1), known)], axis=1)
    pixels = np.random.default_rng(0).uniform(10, 30, (50, 2))
    center = np.array([0.1, -0.2, depth - 0.5])
    normal = [0.0, np.sin(np.radians(tilt_deg)), -np.cos(np.radians(tilt_deg))]
    return PyramidLevel(
        table=both(table).reshape(-1, table.shape[1]),
        height=size,
        width=size,
        K=both(K),
        centers=both(center),
        pixel=depth / focal,
        points=both(depth * pixel_directions(K, pixels) - center),
        normals=both(np.tile(normal, (50, 1))),
        weights=both(np.ones(50)),
    )


def chord(degrees: float) -> float:
    return 2 * np.sin(np.radians(degrees) / 2)


def geman_mcclure(*ratios: float) -> float:
    """Geman-McClure loss of residuals in units of their kernel widths."""
    square = sum(r**2 for r in ratios)
    return square / (1 + square)


def shifted(z: float) -> Sim3:
    return Sim3(np.eye(3)[None], np.array([[0, 0, z]]), np.ones(1))


def scaled(s: float) -> Sim3:
    return Sim3(np.eye(3)[None], np.zeros((1, 3)), np.array([s]))


HALF_A_PIXEL = 0.5 * 12.0 / 600.0


@pytest.mark.parametrize(
    ("level", "similarity", "loss", "weight"),
    [
        pytest.param(plane_level(), IDENTITY, 0, 1.5, id="full agreement"),
        pytest.param(plane_level(tilt_deg=10), IDENTITY, geman_mcclure(chord(10) / 0.3), 1.5, id="normals"),
        pytest.param(plane_level(tilt_deg=20), IDENTITY, geman_mcclure(chord(20) / 0.3), 1.5, id="outlier normals"),
        pytest.param(plane_level(), shifted(0.2), geman_mcclure(0.2 / 0.15), 1.5, id="depths"),
        pytest.param(plane_level(), scaled(1.3), geman_mcclure(0.3 * 0.5 / 0.15), 1.5, id="scale"),
        pytest.param(
            plane_level(tilt_deg=10), shifted(-0.1), geman_mcclure(chord(10) / 0.3, 0.1 / 0.15), 1.5, id="both"
        ),
        pytest.param(plane_level(0.1), IDENTITY, 1 + 0.5 * geman_mcclure(0.1 / 0.15), 1.5, id="outside the mask"),
        pytest.param(plane_level(-HALF_A_PIXEL), IDENTITY, 0.5, 1.5, id="rim pixel"),
        pytest.param(plane_level(tilt_deg=180), IDENTITY, 0, 0.5, id="facing away"),
        pytest.param(
            plane_level(0.1, 180), IDENTITY, 0.5 * geman_mcclure(0.1 / 0.15), 0.5, id="facing away, outside the mask"
        ),
        pytest.param(plane_level(), shifted(-30), 0, 0, id="behind the camera"),
        pytest.param(plane_level(tilt_deg=20, known=0.0), shifted(0.2), 0, 0.5, id="in a hole"),
        pytest.param(
            plane_level(0.1, known=0.0),
            IDENTITY,
            0.5 * geman_mcclure(0.1 / 0.15),
            0.5,
            id="in a hole, outside the mask",
        ),
        pytest.param(
            plane_level(tilt_deg=10, known=1.0), IDENTITY, geman_mcclure(chord(10) / 0.3), 1.5, id="beside holes"
        ),
        pytest.param(
            plane_level(tilt_deg=10, known=0.5), IDENTITY, 0.5 * geman_mcclure(chord(10) / 0.3), 1, id="rim of a hole"
        ),
    ],
)
def test_residuals_of_a_plane(level, similarity, loss, weight):
    """Every point has the same known residuals; loss and weight are given per point. The silhouette weighs 1/2."""
    terms = pair_terms(level, FIRST, SECOND, similarity, KERNELS)
    assert terms.loss[0] == pytest.approx(50 * loss, abs=2e-3)
    assert terms.weight[0] == pytest.approx(50 * weight, abs=1e-4)
    without = pair_terms(level, FIRST, SECOND, similarity, KERNELS, derivatives=False)
    np.testing.assert_array_equal(without.loss, terms.loss)


def test_points_count_by_how_much_they_face_the_camera():
    cosines = np.array([-1.0, 0.1, 0.25, 0.4, 1.0])
    np.testing.assert_allclose(facing_weight(cosines), [0, 0, 0.5, 1, 1], atol=1e-12)


def ray_sphere(rays: np.ndarray, center: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First intersections of rays of depth 1 with a sphere: depths, normals and the rays' distances from the center."""
    square = (rays**2).sum(-1)
    closest = rays @ center / square
    distance = np.linalg.norm(closest[..., None] * rays - center, axis=-1)
    depth = closest - np.sqrt(np.maximum(radius**2 - distance**2, 1e-9) / square)
    normals = depth[..., None] * rays - center
    return depth, normals / np.linalg.norm(normals, axis=-1, keepdims=True), distance


SPHERE_CENTER, SPHERE_RADIUS = np.array([0.05, -0.03, 12.0]), 0.8


def sphere_level(size: int = 101, outside: bool = False) -> PyramidLevel:
    """Two equal views of a sphere, with 400 points that face the camera and are far from the contour.

    Args:
        size: width and height of the maps in pixels.
        outside: shrink the silhouette, so that all points are outside.
    """
    focal = 600.0 * size / 101
    K = np.array([[focal, 0.7, 0.5 * size], [0, 0.97 * focal, 0.49 * size], [0, 0, 1]])
    rays = pixel_directions(K, pixel_grid(size, size))
    depth, normals, distance = ray_sphere(rays, SPHERE_CENTER, SPHERE_RADIUS)
    contour_distance = distance - (0.05 if outside else SPHERE_RADIUS)
    table = np.concatenate([normals, depth[..., None], contour_distance[..., None]], axis=-1)
    facing = distance.ravel() < 0.6 * SPHERE_RADIUS
    if outside:
        facing &= contour_distance.ravel() > 0.25
    pixels = np.random.default_rng(0).permutation(np.flatnonzero(facing))[:400]
    points = (depth[..., None] * rays - SPHERE_CENTER).reshape(-1, 3)[pixels]
    points *= np.random.default_rng(1).uniform(0.97, 1.03, (400, 1))  # the depths disagree a little
    return PyramidLevel(
        table=both(table.reshape(-1, 5)).reshape(-1, 5),
        height=size,
        width=size,
        K=both(K),
        centers=both(SPHERE_CENTER),
        pixel=12.0 / focal,
        points=both(points),
        normals=both(normals.reshape(-1, 3)[pixels]),
        weights=both(np.ones(400)),
    )


def test_residuals_of_a_sphere_at_a_general_pose():
    """The twin intersects rays with the sphere instead of looking up maps; the maps' interpolation is off by 1e-4."""
    level = sphere_level()
    T = random_similarities(1, 0.08, np.random.default_rng(2))
    camera = T.s[0] * level.points[0].double().numpy() @ T.R[0].T + T.t[0] + SPHERE_CENTER
    normals = level.normals[0].double().numpy() @ T.R[0].T
    rays = camera / camera[:, 2:]
    depth, sphere_normals, _ = ray_sphere(rays, SPHERE_CENTER, SPHERE_RADIUS)
    plane_distance = (sphere_normals * (camera - depth[:, None] * rays)).sum(axis=1)
    difference = np.linalg.norm(normals - sphere_normals, axis=1)
    losses = [geman_mcclure(n / 0.3, d / 0.15) for n, d in zip(difference, plane_distance)]
    terms = pair_terms(level, FIRST, SECOND, T, KERNELS)
    assert np.mean(losses) > 0.1
    assert terms.loss[0] == pytest.approx(np.sum(losses), rel=1e-3)
    assert terms.weight[0] == pytest.approx(400 * 1.5)


def test_lookups_are_bilinear():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((2, 6, 8, 5)).astype(np.float32)
    level = replace(plane_level(), table=torch.from_numpy(table.reshape(-1, 5)), height=6, width=8)
    u, v = rng.uniform(0, 7, (2, 30)).astype(np.float32), rng.uniform(0, 5, (2, 30)).astype(np.float32)
    value, along_u, along_v = residuals._bilinear(level, torch.tensor([1, 0]), torch.from_numpy(u), torch.from_numpy(v))

    def expected(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """SciPy's linear interpolation, for view 1 and view 0."""
        rows = [
            np.stack([map_coordinates(table[view, ..., c].astype(float), [y, x], order=1) for c in range(5)], axis=-1)
            for view, x, y in zip((1, 0), u, v)
        ]
        return np.stack(rows)

    np.testing.assert_allclose(value, expected(u, v), atol=1e-5)
    # Linear along each axis within a cell, so that differences over the cell are exact derivatives.
    left, top = np.floor(u), np.floor(v)
    np.testing.assert_allclose(along_u, expected(left + 1, v) - expected(left, v), atol=1e-5)
    np.testing.assert_allclose(along_v, expected(u, top + 1) - expected(u, top), atol=1e-5)


def test_batches_of_pairs_equal_single_pairs(monkeypatch):
    maps, truth = true_maps()
    level = make_level(maps, 2, 90, np.random.default_rng(0))
    state = truth.retract(0.15 * np.random.default_rng(1).standard_normal((10, 7)))
    pairs = choose_pairs(truth.R, 60, 10, 4)
    monkeypatch.setattr(residuals, "_CHUNK", 7 * level.points.shape[1])
    terms, relative = PairwiseProblem(level, pairs, KERNELS).terms(state)
    assert terms.hessian is not None and len(pairs) % 7 != 0
    for q, (i, j) in enumerate(pairs):
        one = pair_terms(level, np.array([i]), np.array([j]), relative[[q]], KERNELS)
        assert one.hessian is not None
        np.testing.assert_allclose([terms.loss[q], terms.weight[q]], [one.loss[0], one.weight[0]], rtol=1e-5)
        np.testing.assert_allclose(terms.hessian[q], one.hessian[0], atol=1e-5 * np.abs(one.hessian).max())


GRADIENT_SIZE = 401
"""Maps so fine that the jumps of their slopes from pixel to pixel cost the gradient less than 0.03%."""


@pytest.mark.parametrize("outside", [False, True])
def test_gradient_is_that_of_the_loss(outside):
    level, kernels = sphere_level(GRADIENT_SIZE, outside), Kernels(0.2, 0.1, 0.3)
    T = random_similarities(1, 0.08, np.random.default_rng(2))
    gradient = pair_terms(level, FIRST, SECOND, T, kernels).gradient
    assert gradient is not None

    def loss(twist: np.ndarray) -> float:
        return pair_terms(level, FIRST, SECOND, IDENTITY.retract(twist[None]).compose(T), kernels, False).loss[0]

    step = 2e-3
    numeric = np.array([(loss(step * e) - loss(-step * e)) / (2 * step) for e in np.eye(7)])
    assert np.linalg.norm(numeric) > 1
    # The derivatives are those of loss / 2.
    np.testing.assert_allclose(2 * gradient[0], numeric, atol=1e-3 * np.linalg.norm(numeric))


def test_views_gradient_and_hessian_follow_from_the_pairs():
    level, kernels = sphere_level(GRADIENT_SIZE), Kernels(0.2, 0.1, 0.3)
    state = random_similarities(2, 0.05, np.random.default_rng(5))
    problem = PairwiseProblem(level, np.array([[0, 1], [1, 0]]), kernels)
    linear = problem.linearize(state)
    step = 2e-3
    numeric = np.array(
        [
            (problem.linearize(problem.retract(state, e)).cost - problem.linearize(problem.retract(state, -e)).cost)
            / (2 * step)
            for e in step * np.eye(14)
        ]
    )
    np.testing.assert_allclose(linear.gradient, numeric, atol=1e-3 * np.linalg.norm(numeric))
    np.testing.assert_allclose(linear.hessian, linear.hessian.T, atol=1e-6 * np.abs(linear.hessian).max())
    assert np.linalg.eigvalsh(linear.hessian).min() > -1e-6 * np.linalg.eigvalsh(linear.hessian).max()
    # A common motion of all views (the gauge) changes nothing.
    alike = np.linalg.inv(state.adjoint()) @ np.random.default_rng(6).standard_normal(7)
    assert np.abs(linear.hessian @ alike.ravel()).max() < 1e-3 * np.abs(linear.hessian).max() * np.abs(alike).max()
    one_free = PairwiseProblem(level, np.array([[0, 1], [1, 0]]), kernels, free=[1]).linearize(state)
    np.testing.assert_allclose(one_free.hessian, linear.hessian[7:, 7:])
    np.testing.assert_allclose(one_free.gradient, linear.gradient[7:])


def test_true_poses_cost_less_than_any_near_them():
    maps, truth = true_maps()
    level = make_level(maps, 1, 300, np.random.default_rng(0))
    problem = PairwiseProblem(level, choose_pairs(truth.R, 60, 10, 4), KERNELS)
    best = problem.linearize(truth).cost
    for seed in range(5):
        off = np.random.default_rng(seed).standard_normal((10, 7)) * 0.06
        assert problem.linearize(truth.retract(off)).cost > best + 0.02


def test_points_outside_the_image_do_not_count():
    maps, truth = true_maps()
    level = make_level(maps, 1, 300, np.random.default_rng(0))
    away = truth.replaced(1, replace(truth[[1]], t=truth.t[[1]] + 10 * truth.R[[1], :, 0]))
    terms, _ = PairwiseProblem(level, np.array([[0, 1]]), KERNELS).terms(away)
    assert (terms.loss[0], terms.weight[0]) == (0, 0)


def test_holes_are_neither_sampled_nor_compared():
    """Points come from pixels with normals, the sixth channel is low in holes, and silhouettes are as before."""
    _, views, _ = capture()
    holed = views_with_holes(views)
    levels = []
    for maps in (integrate_views(v, integrate_normals) for v in (views, holed)):
        assert np.isfinite(maps.depths[maps.views.masks]).all()
        levels.append(make_level(maps, 2, 500, np.random.default_rng(0)))
    assert [level.table.shape[1] for level in levels] == [5, 6]
    np.testing.assert_array_equal(*(level.table[:, 4].numpy() for level in levels))
    table = levels[1].table.view(len(views), levels[1].height, levels[1].width, 6).numpy()
    small = holed.strided(2)
    assert (table[..., 5][~small.masks] == 1).all()
    assert table[..., 5][small.masks & ~small.valid].mean() < 0.6
    assert table[..., 5][small.valid].mean() > 0.9
    # Points project to the pixels that they were sampled at.
    for i in range(len(views)):
        real = levels[1].weights[i] > 0
        camera = (levels[1].points[i] + levels[1].centers[i])[real].double().numpy()
        column, row = np.rint(project(camera, small.K[i])).astype(int).T
        assert small.valid[i, row, column].all()

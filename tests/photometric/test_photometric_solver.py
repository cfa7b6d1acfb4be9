# SPDX-License-Identifier: Apache-2.0
"""The robust solver against a slow twin and against known normals."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.photometric import Material, angles_deg, cap_directions, make_truth, render, two_bodies

from pmni_nerfstudio.photometric.lights import Lights
from pmni_nerfstudio.photometric.solver import Solution, SolverOptions, solve

OPTIONS = SolverOptions()


def slow_twin(values: np.ndarray, clipped: np.ndarray, directions: np.ndarray, options: SolverOptions) -> np.ndarray:
    """Albedo times normal (p, 3), pixel by pixel in double precision: ranks, then L1 by IRLS. NaN where undetermined."""
    out = np.full((len(values), 3), np.nan)
    for i, pixel in enumerate(values.astype(float)):
        good = sorted(pixel[~clipped[i]])
        if not good:
            continue
        upper = good[min(3 * (len(pixel) - 1) // 4, len(good) - 1)]
        limit = options.shadow * max(upper, 0.2 * good[-1])
        order = [j for j in np.argsort(pixel) if not clipped[i, j]]
        num_dark = sum(pixel[j] <= limit for j in order)
        start = max(round(options.drop_dark * len(pixel)), num_dark)
        stop = min(len(pixel) - round(options.drop_bright * len(pixel)), len(order))
        stop = min(max(stop, start + 6), len(order))
        start = max(min(start, stop - 6), num_dark)
        used = order[start:stop]
        if len(used) < 3:
            continue
        A, b = directions[used].astype(float), pixel[used]
        weight = np.ones(len(used))
        for _ in range(options.steps):
            g = np.linalg.lstsq(A * np.sqrt(weight)[:, None], b * np.sqrt(weight), rcond=None)[0]
            weight = 1 / np.maximum(np.abs(b - A @ g), 1e-3 * pixel.max())
        out[i] = g
    return out


def random_pixels(count: int, lights: int, seed: int, sigma: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (p, n) of random matte pixels with attached shadows, their normals, and directions; OpenCV axes."""
    rng = np.random.default_rng(seed)
    directions = cap_directions(lights)
    normals = rng.standard_normal((count, 3))
    normals[:, 2] = -np.abs(normals[:, 2]) - 0.4
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    albedo = rng.uniform(0.1, 1, (count, 1))
    values = np.maximum(albedo * normals @ directions.T, 0) + sigma * rng.standard_normal((count, lights))
    return np.maximum(values, 0).astype(np.float32), normals, directions


def errors(found: Solution, normals: np.ndarray) -> np.ndarray:
    return angles_deg(found.scaled_normals[found.solved], normals[found.solved])


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_slow_twin_with_highlights_shadows_noise_and_clipping(seed: int):
    values, _, directions = random_pixels(150, 18, seed, sigma=0.01)
    rng = np.random.default_rng(100 + seed)
    values[rng.random(values.shape) < 0.1] *= 4
    values[rng.random(values.shape) < 0.15] *= 0.02
    clipped = values > 1
    found = solve(values, clipped, directions)
    slow = slow_twin(values, clipped, directions, OPTIONS)
    assert np.array_equal(found.solved, np.isfinite(slow[:, 0]))
    difference = angles_deg(found.scaled_normals[found.solved], slow[found.solved])
    # The solver ends pixel by pixel, at small changes, before the twin does.
    assert np.quantile(difference, 0.95) < 0.15 and difference.max() < 0.6, np.sort(difference)[-10:]


def test_matte_pixels_without_noise_are_exact():
    values, normals, directions = random_pixels(2000, 20, 1)
    found = solve(values, np.zeros(values.shape, bool), directions)
    assert found.solved.all()
    assert errors(found, normals).max() < 0.01
    albedo = values.max(axis=1) / np.maximum(normals @ directions.T, 0).max(axis=1)
    np.testing.assert_allclose(np.linalg.norm(found.scaled_normals, axis=1), albedo, rtol=1e-4)
    assert found.residual.max() < 1e-4 and not found.highlights.any()


def test_directions_of_each_pixel_give_the_same_as_common_ones():
    values, _, directions = random_pixels(200, 12, 2, sigma=0.01)
    clipped = values > 0.9
    common = solve(values, clipped, directions)
    each = solve(values, clipped, np.broadcast_to(directions, (200, 12, 3)))
    np.testing.assert_allclose(each.scaled_normals, common.scaled_normals, atol=1e-3)
    assert np.array_equal(each.used, common.used) and np.array_equal(each.highlights, common.highlights)


def test_clipped_values_have_no_influence():
    values, normals, directions = random_pixels(300, 16, 3)
    clipped = np.random.default_rng(0).random(values.shape) < 0.3
    first = solve(np.where(clipped, np.float32(7), values), clipped, directions)
    second = solve(np.where(clipped, np.float32(9), values), clipped, directions)
    assert not (first.used & clipped).any()
    # Up to the weight below which residuals count alike, which follows the largest value.
    assert angles_deg(first.scaled_normals, second.scaled_normals).max() < 0.01
    assert errors(first, normals).max() < 0.02


def test_shadows_are_found_and_left_out():
    values, normals, directions = random_pixels(500, 20, 4)
    cast = np.random.default_rng(1).random(values.shape) < 0.5
    values[cast] = 0
    found = solve(values, np.zeros(values.shape, bool), directions)
    assert (found.shadowed | ~cast).all() and not (found.used & cast).any()
    lit = ~cast & (normals @ directions.T > 0.3)
    assert not (found.shadowed & lit).any()
    assert errors(found, normals).max() < 0.05


def test_highlights_are_found():
    values, normals, directions = random_pixels(400, 20, 5)
    albedo = values.max(axis=1, keepdims=True)
    bright = (np.random.default_rng(2).random(values.shape) < 0.1) & (values > 0.2 * albedo)
    values += np.where(bright, np.float32(0.6) * albedo, 0)
    found = solve(values, np.zeros(values.shape, bool), directions)
    assert np.quantile(errors(found, normals), 0.9) < 0.3
    assert found.highlights[bright].mean() > 0.97 and found.highlights[~bright].mean() < 0.01


def test_lights_in_one_plane_or_too_few_do_not_determine_a_pixel():
    values, _, directions = random_pixels(10, 8, 6)
    flat = directions * [1, 0, 1]
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    shading = np.maximum(flat @ [0, 0, -1.0], 0)[None].astype(np.float32).repeat(10, axis=0)
    found = solve(shading, np.zeros((10, 8), bool), flat)
    assert not found.solved.any() and not found.scaled_normals.any() and np.isinf(found.residual).all()
    clipped = np.ones((10, 8), bool)
    clipped[:, :2] = False
    assert not solve(values, clipped, directions).solved.any()
    assert not solve(np.zeros((10, 8), np.float32), np.zeros((10, 8), bool), directions).solved.any()


@pytest.mark.parametrize(
    ("gloss", "shininess", "mean_deg"),
    [(0.0, 1, 0.05), (0.4, 100, 0.5), (0.4, 30, 2.5)],
    ids=["matte", "sharp", "broad"],
)
def test_gloss_and_cast_shadows_cost_stated_degrees(gloss: float, shininess: float, mean_deg: float):
    truth = make_truth(2, 80, 68)
    lights = Lights(cap_directions(32), np.ones((32, 3)))
    for view in range(2):
        images = render(truth, view, lights, Material(gloss=gloss, shininess=shininess), two_bodies)
        values = images[:, truth.masks[view], 0].T.astype(np.float32)
        normals = truth.normals[view][truth.masks[view]]
        found = solve(values, np.zeros(values.shape, bool), lights.vectors)
        plain = np.linalg.lstsq(lights.vectors, values.T, rcond=None)[0].T
        mean, least_squares = errors(found, normals).mean(), angles_deg(plain, normals).mean()
        assert found.solved.mean() > 0.99
        assert mean < mean_deg and mean < 0.5 * least_squares, (mean, least_squares)

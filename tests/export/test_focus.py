# SPDX-License-Identifier: Apache-2.0
"""Focus of photographs: blurred views lose their weight where they are blurred, and only there."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import trimesh
from helpers.scenes import fitting_intrinsics, irregular_ring

from pmni_nerfstudio.export.color_blending import blended, view_gains
from pmni_nerfstudio.export.color_samples import ColorSamples, gather_samples
from pmni_nerfstudio.export.focus import focus_factors
from pmni_nerfstudio.export.photographs import Photograph
from pmni_nerfstudio.geometry.cameras import pixel_rays
from pmni_nerfstudio.geometry.ray_casting import RayCaster

BALL = trimesh.creation.icosphere(subdivisions=5, radius=0.7)
RAYS = RayCaster(BALL)
WIDTH, HEIGHT, VIEWS = 160, 144, 8
BLURRED = 3


def colors_of(points: np.ndarray) -> np.ndarray:
    """Color (P, 3) of points: a pattern with a period of about 8 pixels, and a plain cap."""
    waves = np.sin(points @ np.array([[55.0, 9, -7], [-11, 50, 6], [8, -6, 60]]))
    return np.where(points[:, 2:] > 0.45, 0.4, 0.4 + 0.25 * waves)


@pytest.fixture(scope="module")
def photographs() -> list[Photograph]:
    """Photographs of a ball, one of them out of focus in its left half."""
    K = fitting_intrinsics(WIDTH, HEIGHT, 5.0)
    taken = []
    for index, c2w in enumerate(irregular_ring(VIEWS, 5.0, np.random.default_rng(0))):
        origins, directions = pixel_rays(K, c2w, WIDTH, HEIGHT)
        hits = RAYS.cast(origins, directions)
        hit = np.isfinite(hits.distance)
        image = np.zeros((WIDTH * HEIGHT, 3), np.float32)
        image[hit] = colors_of(origins[hit] + hits.distance[hit, None] * directions[hit])
        image += np.random.default_rng(index).normal(0, 0.004, image.shape).astype(np.float32)
        image = image.reshape(HEIGHT, WIDTH, 3)
        if index == BLURRED:
            image[:, : WIDTH // 2] = cv2.GaussianBlur(image, (0, 0), 3.0)[:, : WIDTH // 2]
        taken.append(Photograph(image, hit.reshape(HEIGHT, WIDTH).astype(np.float32), K, c2w))
    return taken


def samples_of(photographs: list[Photograph]) -> ColorSamples:
    return gather_samples(BALL, RAYS, BALL.vertices, BALL.vertex_normals.astype(np.float32), photographs)


def test_blurred_parts_of_a_view_lose_their_weight(photographs: list[Photograph]):
    samples = samples_of(photographs)
    c2w = photographs[BLURRED].c2w
    camera = (BALL.vertices - c2w[:3, 3]) @ c2w[:3, :3]
    column = photographs[BLURRED].K[0, 0] * camera[:, 0] / camera[:, 2] + photographs[BLURRED].K[0, 2]
    share = np.where(samples.views == BLURRED, samples.weights, 0).sum(1) / samples.weights.sum(1).clip(1e-9)
    seen = ((samples.views == BLURRED) & (samples.sharpness > 0)).any(1) & ((samples.sharpness > 0).sum(1) >= 3)
    textured = BALL.vertices[:, 2] < 0.3
    left, right = (seen & textured & where for where in (column < WIDTH / 2 - 8, column > WIDTH / 2 + 15))
    assert left.sum() > 300 and right.sum() > 300
    assert share[left].mean() < 0.08
    assert share[right].mean() > 0.2


def test_blur_does_not_reach_the_colors(photographs: list[Photograph], monkeypatch: pytest.MonkeyPatch):
    def mean_error(samples: ColorSamples) -> float:
        colors, seen = blended(samples, view_gains(samples))
        here = seen & (np.where(samples.views == BLURRED, samples.sharpness, 0) > 0).any(1)
        return float(np.abs(colors - colors_of(BALL.vertices))[here].mean())

    focused = mean_error(samples_of(photographs))
    monkeypatch.setattr("pmni_nerfstudio.export.color_samples.focus_factors", lambda *_: np.float32(1))
    assert focused < 0.85 * mean_error(samples_of(photographs))


def test_views_keep_their_weight_without_texture_or_without_others_to_compare():
    rng = np.random.default_rng(0)
    points, views = rng.uniform(-1, 1, (5000, 3)), np.tile(np.arange(4), (5000, 1))
    noise = rng.uniform(0.9, 1.1, (5000, 4))  # as without texture
    assert focus_factors(noise, views, points, 3.5).min() > 0.99
    two = np.where(views < 2, noise * np.array([1, 0.2, 1, 1]), 0)
    assert focus_factors(two, views, points, 3.5).min() == 1
    # Of several views, one with a fifth of the sharpness of the others hardly counts.
    factors = focus_factors(noise * np.array([1, 0.2, 1, 1]), views, points, 3.5)
    assert factors[:, 1].max() < 0.05 and np.delete(factors, 1, axis=1).min() > 0.99

# SPDX-License-Identifier: Apache-2.0
"""Shading and layout of the comparison picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.evaluation import C2W, HEIGHT, WIDTH, K, ball

from pmni_nerfstudio.evaluation import picture
from pmni_nerfstudio.evaluation.picture import PictureView, comparison_picture, shaded_view
from pmni_nerfstudio.geometry.normals import normals_to_rgb
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.synth import SynthConfig, make_scene
from pmni_nerfstudio.synth.shapes import SHAPES
from pmni_nerfstudio.synth.surface import surface_mesh


def test_normals_have_the_conventional_colors():
    normals = np.array([[[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]]])
    mask = np.array([[True, True, True, False]])
    expected = [[[0.5, 0.5, 1.0], [1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [1.0, 1.0, 1.0]]]
    np.testing.assert_allclose(normals_to_rgb(normals, mask[..., None]), expected)


def test_shaded_mesh_covers_the_projected_sphere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(picture, "CLAY", np.zeros(3))  # black mesh on white: dark pixels are covered
    center, radius = np.array([0.35, -0.2, 0.3]), 0.3
    mesh = ball(radius, tuple(center))
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    for c2w in C2W:
        image = shaded_view(mesh, RayCaster(mesh), K, c2w, (HEIGHT, WIDTH))
        assert image.shape == (HEIGHT, WIDTH, 3)
        covered = 1 - image.mean(-1)
        seen = K @ (c2w[:3, :3].T @ (center - c2w[:3, 3]))
        assert (u * covered).sum() / covered.sum() == pytest.approx(seen[0] / seen[2], abs=0.05)
        assert (v * covered).sum() / covered.sum() == pytest.approx(seen[1] / seen[2], abs=0.05)
        assert covered.sum() == pytest.approx(np.pi * (K[0, 0] * radius / seen[2]) ** 2, rel=0.02)


def test_light_comes_from_the_upper_left():
    mesh = ball(0.6)
    image = shaded_view(mesh, RayCaster(mesh), K, C2W[0], (HEIGHT, WIDTH)).mean(-1)
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    on, right, down = image < 0.999, u - WIDTH / 2, v - HEIGHT / 2
    assert np.corrcoef(image[on], right[on])[0, 1] < -0.1 and np.corrcoef(image[on], down[on])[0, 1] < -0.3


def test_picture_is_written(tmp_path: Path):
    scene = make_scene(SynthConfig(shape="blob", views=3, width=WIDTH, height=HEIGHT))
    mesh = surface_mesh(SHAPES["blob"], 64)
    views = [
        PictureView(input=normals, rendered=np.roll(normals, 1, axis=1), mask=mask)
        for normals, mask in zip(scene.normals, scene.masks)
    ]
    comparison_picture(tmp_path / "new" / "a.png", views, mesh, scene.c2w, scene.K, "title")
    image = cv2.imread(str(tmp_path / "new" / "a.png"))
    assert image is not None and image.std() > 10
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
    with pytest.raises(ValueError):
        comparison_picture(tmp_path / "b.png", views, mesh, scene.c2w[:2], scene.K, "one pose is missing")

# SPDX-License-Identifier: Apache-2.0
"""Maps of single views: chunks, validity, confidence, clipping levels, normals that face away, checks of values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.photometric import Material, angles_deg, as_png, cap_directions, make_truth, render, two_bodies

from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.cameras import pixel_directions, pixel_grid
from pmni_nerfstudio.photometric import view_maps
from pmni_nerfstudio.photometric.capture import CaptureView
from pmni_nerfstudio.photometric.checks import check_linear
from pmni_nerfstudio.photometric.lights import Lights
from pmni_nerfstudio.photometric.photographs import Photographs, load_photographs
from pmni_nerfstudio.photometric.view_maps import ViewMaps, facing_viewer, solve_view

TRUTH = make_truth(2, 80, 68)
LIGHTS = Lights(cap_directions(20), np.ones((20, 3)))


def photographs_of(material: Material, exposure: float = 1.0, noise: float = 0.0) -> Photographs:
    images = render(TRUTH, 0, LIGHTS, material, two_bodies)
    images += noise * np.random.default_rng(5).standard_normal(images.shape)
    stored = as_png(images, exposure)[:, TRUTH.masks[0]]
    return Photographs(stored, 65535.0, TRUTH.masks[0], LIGHTS.intensities)


def errors(maps: ViewMaps) -> np.ndarray:
    return angles_deg(maps.normals[maps.valid], TRUTH.normals[0][maps.valid])


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    photographs = photographs_of(Material(gloss=0.3), 0.7, 0.002)
    whole = solve_view(photographs, LIGHTS, TRUTH.K[0])
    monkeypatch.setattr(view_maps, "_CHUNK_VALUES", 20 * 77)
    parts = solve_view(photographs, LIGHTS, TRUTH.K[0])
    # Matrix products of other sizes are rounded differently.
    np.testing.assert_allclose(parts.normals, whole.normals, atol=1e-3)
    np.testing.assert_allclose(parts.confidence, whole.confidence, atol=1e-2)


def test_confidence_tells_good_normals_from_bad_ones():
    maps = solve_view(photographs_of(Material((0.3,) * 3, 0.5, 15), 0.8), LIGHTS, TRUTH.K[0])
    confidence, error = maps.confidence[maps.valid], errors(maps)
    order = np.argsort(confidence)
    quarter = len(order) // 4
    assert error[order[:quarter]].mean() > 3 * error[order[-quarter:]].mean()
    assert 0 <= confidence.min() and confidence.max() <= 1


def test_an_overexposed_capture_loses_pixels_but_not_accuracy():
    maps = solve_view(photographs_of(Material((0.9,) * 3), 3.0), LIGHTS, TRUTH.K[0])
    share = maps.valid.sum() / maps.mask.sum()
    assert 0.5 < share < 1 and errors(maps).mean() < 0.05
    assert not maps.albedo[~maps.valid].any() and not maps.confidence[~maps.valid].any()


def test_fewest_lights_are_an_option():
    photographs = photographs_of(Material((0.9,) * 3), 3.0)
    shares = [solve_view(photographs, LIGHTS, TRUTH.K[0], min_lights=n).valid.sum() for n in (3, 8, 14)]
    assert shares[0] > shares[1] > shares[2]


def test_normals_that_face_away_are_turned_or_dropped():
    maps = solve_view(photographs_of(Material()), LIGHTS, TRUTH.K[0])
    rays = pixel_directions(TRUTH.K[0], pixel_grid(*TRUTH.size))[maps.mask]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    across = np.cross(rays, [0, 1.0, 0])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    for angle_deg, is_kept in ((-30, True), (5, True), (30, False)):
        normals = np.zeros_like(maps.normals)
        angle = np.deg2rad(angle_deg)
        normals[maps.mask] = np.cos(angle) * across + np.sin(angle) * rays
        turned = facing_viewer(replace(maps, normals=normals), TRUTH.K[0]).normals[maps.mask]
        assert turned.any(axis=1).all() == is_kept and turned.any() == is_kept
        if is_kept:
            assert ((turned * rays).sum(axis=1) < 0).all()
            expected = normals[maps.mask] if angle_deg < 0 else across
            assert angles_deg(turned, expected).max() < 0.2


@pytest.mark.parametrize(("brightest", "top"), [(4095, 4095), (4000, 65535), (16383, 16383), (65535, 65535)])
def test_clipping_level_of_a_sensor_is_recognized(brightest: int, top: int, tmp_path: Path):
    view = written(tmp_path, [np.full((20, 20, 3), brightest, np.uint16)] * 4)
    assert load_photographs(view, None, 1.0).top == top
    assert load_photographs(view, 1234.0, 1.0).top == 1234


def written(folder: Path, images: list[np.ndarray]) -> CaptureView:
    mask = np.zeros(images[0].shape[:2], bool)
    mask[4:-4, 4:-4] = True
    write_png(folder / "mask.png", mask)
    files = tuple(folder / f"{i}.png" for i in range(len(images)))
    for file, image in zip(files, images):
        write_png(file, image)
    lights = Lights(cap_directions(len(images)), np.ones((len(images), 3)))
    return CaptureView("view", files, lights, folder / "mask.png")


@pytest.mark.parametrize("material", [Material(), Material(gloss=0.4, shininess=30), Material((0.1,) * 3, 0.8, 10)])
def test_encoded_values_are_told_from_gloss(material: Material):
    images = render(TRUTH, 0, LIGHTS, material, two_bodies)[:, TRUTH.masks[0]]
    images *= 0.95 / images.max()
    view = CaptureView("view", (Path("a.png"),), LIGHTS, Path("mask.png"))

    def photographs(values: np.ndarray) -> Photographs:
        return Photographs(np.round(255 * values).astype(np.uint8), 255.0, TRUTH.masks[0], LIGHTS.intensities)

    check_linear(view, photographs(images), is_gamma_given=False)
    encoded = photographs(images ** (1 / 2.2))
    check_linear(view, encoded, is_gamma_given=True)
    if material == Material():
        with pytest.raises(SceneError, match="gamma-encoded"):
            check_linear(view, encoded, is_gamma_given=False)

# SPDX-License-Identifier: Apache-2.0
"""3D views of a page in a browser: a ball as mesh and as field has the right outline, normals and errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from helpers.browser import Opened, opened  # noqa: F401

from pmni_nerfstudio.export.field_volume import (
    BAND,
    FieldVolume,
    read_field_volume,
    sample_field,
    write_field_volume,
)
from pmni_nerfstudio.report.appearance import VertexColors, baked_normals
from pmni_nerfstudio.report.figures import Surface, VertexErrors, surface_view
from pmni_nerfstudio.report.frames import Frame
from pmni_nerfstudio.report.page import Section, figure, write_page

RADIUS, SCALE = 0.6, 30.0
"""Radius of the ball in the unit-sphere world, and units per radius of that world."""
CENTER = np.array([0.1, -0.2, 0.05])
DISTANCE = 1.08 / np.sin(np.deg2rad(15))
"""Distance of the page's camera in radii of the ball."""


def world_from_unit() -> np.ndarray:
    """A world that is turned by 90 degrees about z, scaled and shifted."""
    matrix = np.eye(4)
    matrix[:3, :3] = SCALE * np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    matrix[:3, 3] = [200, 10, -40]
    return matrix


@pytest.fixture(scope="module")
def volume() -> FieldVolume:
    ball = trimesh.creation.icosphere(subdivisions=5, radius=RADIUS).apply_translation(CENTER)

    def sdf(x: torch.Tensor) -> torch.Tensor:
        distance = (x - torch.tensor(CENTER).float()).norm(dim=-1) - RADIUS
        floater = (x - torch.tensor([-0.8, 0.0, 0.0])).norm(dim=-1) - 0.02  # in the box, but not of the mesh
        return torch.minimum(distance, floater)

    return sample_field(sdf, ball, world_from_unit(), resolution=64)


def center() -> np.ndarray:
    return world_from_unit()[:3, :3] @ CENTER + world_from_unit()[:3, 3]


def ball(radius: float) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=4, radius=radius * SCALE).apply_translation(center())


def frame() -> Frame:
    """The ball with radius 1 in the middle, seen along the display's y axis."""
    return Frame(center(), RADIUS * SCALE, np.eye(3), np.array([0.0, -1.0, 0.0]))


def test_a_volume_holds_distances_near_the_surface_and_signs_elsewhere(volume: FieldVolume, tmp_path: Path):
    index = np.argwhere(np.ones_like(volume.values))
    points = index @ volume.world_from_voxel[:3, :3].T + volume.world_from_voxel[:3, 3]
    voxel = np.cbrt(np.linalg.det(volume.world_from_voxel[:3, :3]))
    true = (np.linalg.norm(points - center(), axis=1) - RADIUS * SCALE) / voxel
    stored = (volume.values.reshape(-1) / 127.5 - 1) * BAND
    assert max(volume.values.shape) == 64
    assert np.abs(stored - true.clip(-BAND, BAND)).max() < 0.51 * 2 * BAND / 255
    write_field_volume(tmp_path / "volume.npz", volume)
    again = read_field_volume(tmp_path / "volume.npz")
    np.testing.assert_array_equal(again.values, volume.values)
    np.testing.assert_array_equal(again.world_from_voxel, volume.world_from_voxel)


@pytest.fixture
def shown(volume: FieldVolume, tmp_path: Path, opened: Opened) -> Iterator[Opened]:  # noqa: F811
    """A page with a ball with a field, whose errors grow from left to right, and a smaller ball without a field."""
    large, small = ball(RADIUS), ball(0.5 * RADIUS)
    across = (large.vertices[:, 0] - center()[0]) / (RADIUS * SCALE)
    errors = [VertexErrors("distance error", np.where(across > 0.5, np.nan, (across + 1) / 2), 0.5, "mm")]
    zero = [VertexErrors("distance error", np.zeros(len(small.vertices)), 0.5, "mm")]
    red_above = np.where(large.vertices[:, 2:] > center()[2], [255, 0, 0], [0, 0, 255]).astype(np.uint8)
    colors = VertexColors("photographs", red_above, lit=False)
    surfaces = [
        Surface("large", large, frame(), errors, volume, colors=colors),
        Surface("small", small, frame(), zero),
    ]
    body = figure("scene", surface_view(surfaces, alt="two balls"))
    write_page(tmp_path / "page.html", "balls", [], [Section("balls", "Balls", body)])
    opened.open(tmp_path / "page.html")
    opened.pixels("#balls .frame")
    slider = opened.page.locator("input[type=range]")
    slider.fill("1")  # only the left side
    yield opened
    assert opened.errors == [] and opened.requests == []


def picture(shown: Opened) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colors (H, W, 3) of the view in [0, 1], and its pixels' right and up in radii of the ball's outline."""
    shown.page.wait_for_timeout(150)
    colors = shown.pixels("#balls .frame")[..., ::-1] / 255
    height, width = colors.shape[:2]
    # The ball's outline is a circle whose tangents from the camera have the sine 1 / DISTANCE.
    outline = np.tan(np.arcsin(1 / DISTANCE)) / np.tan(np.deg2rad(15)) * height / 2
    down, right = np.mgrid[:height, :width]
    return colors, (right + 0.5 - width / 2) / outline, (height / 2 - down - 0.5) / outline


def choose(shown: Opened, name: str) -> None:
    shown.page.locator(".switch label").filter(has_text=name).click()


def hit(colors: np.ndarray, right: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Pixels of a ball, without the frame's borders and the slider's line."""
    return (np.abs(colors - 1).max(axis=-1) > 0.02) & (np.hypot(right, up) < 1.2) & (np.abs(right) > 0.01)


def disc(right: np.ndarray, up: np.ndarray, radius: float) -> np.ndarray:
    """True outline of a ball; its radius is relative to the large one's."""
    outline = np.tan(np.arcsin(radius / DISTANCE)) / np.tan(np.arcsin(1 / DISTANCE))
    return (np.hypot(right, up) < outline) & (np.abs(right) > 0.01)


def test_a_ball_has_the_right_outline_and_normals_as_mesh_and_as_field(shown: Opened):
    choose(shown, "normals")
    for kind in ("mesh", "field"):
        choose(shown, kind)
        shown.page.wait_for_selector(f"[data-drawn={kind}]")
        colors, right, up = picture(shown)
        true = disc(right, up, 1)
        assert (hit(colors, right, up) ^ true).sum() < 0.015 * true.sum(), kind
        # Where a pixel's ray meets the unit ball: rays start at distance DISTANCE, along y.
        slope = np.tan(np.arcsin(1 / DISTANCE))
        rays = np.stack([slope * right, np.ones_like(right), slope * up], axis=-1)
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        inner = np.hypot(right, up) < 0.95
        along = DISTANCE * rays[inner][:, 1]
        t = along - np.sqrt(along**2 - DISTANCE**2 + 1)
        normals = t[:, None] * rays[inner] - [0, DISTANCE, 0]
        found = 2 * colors[inner] - 1
        cosine = (found * normals).sum(axis=1) / np.linalg.norm(found, axis=1)
        error = np.degrees(np.arccos(cosine.clip(-1, 1)))
        assert error.mean() < 1 and np.quantile(error, 0.99) < 3, kind


def test_errors_are_colored_and_the_slider_divides_the_view(shown: Opened):
    choose(shown, "distance error")
    colors, right, up = picture(shown)
    brightness = colors.mean(axis=-1)
    middle = np.abs(up) < 0.3
    low, high, unknown = (brightness[middle & (np.abs(right - x) < 0.1)].mean() for x in (-0.8, 0.25, 0.8))
    assert low > 0.5 and high < 0.15 and 0.35 < unknown < 0.65  # unknown ones are gray
    caption = shown.page.locator(".caption").inner_text()
    assert "0.5 mm and more" in caption and "gray: unknown" in caption
    # Two balls, one on each side.
    shown.page.locator("input[type=range]").fill("0.5")
    choose(shown, "normals")
    colors, right, up = picture(shown)
    for side, radius in ((right < 0, 1.0), (right > 0, 0.5)):
        true = disc(right, up, radius) & side
        assert ((hit(colors, right, up) & side) ^ true).sum() < 0.03 * true.sum(), radius
    choose(shown, "field")
    shown.page.wait_for_selector("[data-drawn=field]")
    assert "Without a field, as a mesh: small" in shown.page.locator(".caption").inner_text()
    # Arrow keys turn the view.
    before, _, _ = picture(shown)
    shown.page.locator("canvas").focus()
    shown.page.keyboard.press("ArrowRight")
    assert np.abs(picture(shown)[0] - before).mean() > 0.005


def test_colors_of_photographs_are_drawn_as_they_are(shown: Opened):
    choose(shown, "photographs")
    colors, right, up = picture(shown)
    inner = np.hypot(right, up) < 0.9
    for part, color in ((up > 0.2, [1, 0, 0]), (up < -0.2, [0, 0, 1])):
        np.testing.assert_allclose(colors[inner & part].mean(axis=0), color, atol=0.02)
    choose(shown, "field")
    shown.page.wait_for_selector("[data-drawn=field]")
    assert "Colors are known on the mesh only" in shown.page.locator(".caption").inner_text()


def test_a_simplified_mesh_has_the_normals_of_the_full_one():
    full = trimesh.creation.icosphere(subdivisions=5)
    bumps = 0.02 * np.sin(12 * full.vertices).sum(axis=1)
    full.vertices *= 1 + bumps[:, None]
    coarse = trimesh.creation.icosphere(subdivisions=2)
    outward = coarse.vertices / np.linalg.norm(coarse.vertices, axis=1, keepdims=True)
    tangential = 0.02 * 12 * np.cos(12 * outward)  # gradient of the height
    tangential -= (tangential * outward).sum(axis=1, keepdims=True) * outward
    true = outward - tangential
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    angles = np.degrees(np.arccos((baked_normals(coarse, full) * true).sum(axis=1).clip(-1, 1)))
    smooth = np.degrees(np.arccos((coarse.vertex_normals * true).sum(axis=1).clip(-1, 1)))
    assert np.median(smooth) > 10 and np.median(angles) < 2


def test_the_canvas_is_opaque_because_browsers_print_what_is_transparent_as_black(shown: Opened):
    clear = "canvas => { const gl = canvas.getContext('webgl2'); return [...gl.getParameter(gl.COLOR_CLEAR_VALUE)]; }"
    assert shown.page.locator("#balls canvas").evaluate(clear)[3] == 1
    shown.page.emulate_media(media="print")
    assert shown.page.locator("#balls canvas").evaluate("e => getComputedStyle(e).objectFit") == "contain"

# SPDX-License-Identifier: Apache-2.0
"""Material of two bodies from analytic images under known lights, with attached and cast shadows; light between elements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from helpers.photometric import (
    CaptureFiles,
    GltfMaterial,
    Material,
    as_png,
    body_mesh,
    cap_directions,
    make_truth,
    render,
    two_bodies,
)

from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.export.photographs import Photograph
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.material.albedo_maps import AlbedoMaps, albedo_map
from pmni_nerfstudio.material.estimate import estimate_material
from pmni_nerfstudio.material.interreflection import Interreflection
from pmni_nerfstudio.material.lit_views import LitView, Surface, lit_views
from pmni_nerfstudio.material.relighting import relight
from pmni_nerfstudio.photometric.lights import Lights
from pmni_nerfstudio.photometric.pipeline import read_capture

TRUTH = make_truth(num_views=5, width=96, height=80)
SURFACE = Surface(body_mesh(TRUTH), RayCaster(body_mesh(TRUTH)))
COUNT = 15_000
"""Image values to fit, for speed."""
SCALE = float(np.cbrt(np.linalg.det(TRUTH.world_from_unit[:3, :3])))
DIELECTRIC = GltfMaterial((0.5, 0.35, 0.2), roughness=0.35)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Scene with the true maps."""
    return read_scene(TRUTH.write(tmp_path_factory.mktemp("material") / "scene"))


def views_of(
    scene: Scene, folder: Path, material: Material, lights: Lights | None = None, exposure: float = 0.5
) -> list[LitView]:
    """Write a capture of the bodies, and read it. Positions of near lights are in units of the unit sphere."""
    lights = lights or Lights(cap_directions(12), np.random.default_rng(8).uniform(0.7, 1.4, (12, 3)))
    images = [
        as_png(render(TRUTH, view, lights, material, None if lights.is_near else two_bodies, 14.0), exposure)
        for view in range(len(TRUTH.c2w))
    ]
    stored = replace(lights, vectors=lights.vectors * SCALE) if lights.is_near else lights
    more = {"units": "mm", "distance": 14.0 * SCALE} if lights.is_near else {}
    files = CaptureFiles(TRUTH, images, [stored] * len(images))
    folder.mkdir()
    capture = read_capture(files.write_json(folder, **more), None)
    named = replace(scene, names=tuple(view.name for view in capture.views))
    return lit_views(capture, named, TRUTH.data_c2w, SURFACE)


@pytest.mark.parametrize(("roughness", "tolerance"), [(0.2, 0.15), (0.35, 0.08), (0.6, 0.08)])
def test_roughness_and_exposure_of_a_dielectric_are_found(
    scene: Scene, tmp_path: Path, roughness: float, tolerance: float
):
    """The sharpest highlights are clipped in the images, which leaves their flanks."""
    views = views_of(scene, tmp_path / "capture", replace(DIELECTRIC, roughness=roughness))
    found = estimate_material(views, SURFACE, COUNT)
    assert found.doubt is None and not found.is_metal and found.roughness is not None
    assert abs(found.roughness - roughness) < 0.02
    low, high = found.fit.roughness_range
    assert low < roughness < high
    assert found.specular == 1 and found.exposure == pytest.approx(0.5, rel=tolerance)
    assert np.median(found.fit.albedo, axis=0) / found.exposure == pytest.approx(DIELECTRIC.albedo, rel=tolerance)


def test_near_lights_give_the_same_material(scene: Scene, tmp_path: Path):
    """Lights beside the camera whose distance to the surface differs by a third between its near and far parts."""
    turn = 2 * np.pi * np.arange(14) / 14
    radius = np.where(np.arange(14) % 2, 2.0, 4.5)
    positions = np.stack([radius * np.cos(turn), radius * np.sin(turn), np.full(14, 10.5)], axis=1)
    lights = Lights(positions, np.ones((14, 3)), is_near=True)
    # Relative to the attenuation at the object's distance, near lights are bright.
    found = estimate_material(views_of(scene, tmp_path / "capture", DIELECTRIC, lights, 0.05), SURFACE, COUNT)
    assert found.doubt is None and found.roughness is not None and abs(found.roughness - 0.35) < 0.02
    assert found.exposure == pytest.approx(0.05, rel=0.08)


def test_a_weak_layer_gets_a_specular_factor(scene: Scene, tmp_path: Path):
    """With the full layer, the base color would be brighter than white."""
    pale = GltfMaterial((0.85, 0.8, 0.75), roughness=0.3, specular=0.4)
    found = estimate_material(views_of(scene, tmp_path / "capture", pale), SURFACE, COUNT)
    assert found.roughness is not None and abs(found.roughness - 0.3) < 0.02
    assert found.specular == pytest.approx(0.4, abs=0.05)
    assert found.fit.albedo.max() / found.exposure == pytest.approx(0.9, abs=0.02)


def test_a_black_dielectric_is_no_metal(scene: Scene, tmp_path: Path):
    """Both reflect little but highlights; a dielectric reflects some light beside them."""
    black = GltfMaterial((0.02, 0.02, 0.02), roughness=0.35)
    found = estimate_material(views_of(scene, tmp_path / "capture", black), SURFACE, COUNT)
    assert not found.is_metal and found.roughness is not None and abs(found.roughness - 0.35) < 0.02
    assert np.median(found.fit.albedo) / found.exposure == pytest.approx(0.02, rel=0.1)


def test_a_metal_is_recognized(scene: Scene, tmp_path: Path):
    bronze = GltfMaterial((0.8, 0.6, 0.3), roughness=0.45, metallic=1)
    found = estimate_material(views_of(scene, tmp_path / "capture", bronze, exposure=0.2), SURFACE, COUNT)
    assert found.is_metal and found.roughness is not None and abs(found.roughness - 0.45) < 0.02
    color = np.median(found.fit.albedo, axis=0)
    assert color / color[0] == pytest.approx([1, 0.75, 0.375], rel=0.03)


def test_matte_surfaces_have_no_measured_roughness(scene: Scene, tmp_path: Path):
    found = estimate_material(views_of(scene, tmp_path / "capture", Material((0.5, 0.35, 0.2))), SURFACE, COUNT)
    assert found.roughness is None and found.layer == 0
    assert found.doubt is not None and "no highlights" in found.doubt


def test_base_color_has_neither_shadows_nor_highlights_and_relighting_agrees(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    views = views_of(scene, tmp_path / "capture", DIELECTRIC)
    material = estimate_material(views[1:], SURFACE, COUNT)
    albedo, weight = albedo_map(views[0].load(), SURFACE, material)
    inside = weight > 0.2
    assert inside.sum() > 0.9 * TRUTH.masks[0].sum()
    error = np.abs(albedo[inside] / material.exposure / DIELECTRIC.albedo - 1)
    assert np.median(error) < 0.06 and np.quantile(error, 0.95) < 0.15
    # Maps of the other views, from which this one is rendered.
    maps = []
    for view in views[1:]:
        image, trust = albedo_map(view.load(), SURFACE, material)
        maps.append(Photograph(image / material.exposure, trust, view.K, view.c2w))
    relit = relight(views[0], SURFACE, material, maps)
    assert relit.psnr_db > 27 and relit.psnr_linear_db > 30
    # Of many pixels, some are rendered: the ratio is about the same.
    monkeypatch.setattr("pmni_nerfstudio.material.relighting._MAX_PIXELS", 1000)
    thinned = relight(views[0], SURFACE, material, maps)
    assert thinned.psnr_db == pytest.approx(relit.psnr_db, abs=1.0)
    assert thinned.picture.shape[1] == pytest.approx(relit.picture.shape[1] / 2, abs=3)


@pytest.mark.parametrize("factor", [1e8, 1e-8])
def test_image_values_may_have_any_scale(scene: Scene, tmp_path: Path, factor: float):
    """Intensities in other units, as of radiometrically calibrated lights, change the exposure alone."""
    views = views_of(scene, tmp_path / "capture", DIELECTRIC)
    scaled = []
    for view in views:
        lights = replace(view.capture_view.lights, intensities=factor * view.capture_view.lights.intensities)
        scaled.append(replace(view, capture_view=replace(view.capture_view, lights=lights)))
    found = [estimate_material(several, SURFACE, 5_000) for several in (views, scaled)]
    assert found[0].roughness is not None and found[1].roughness == pytest.approx(found[0].roughness, abs=1e-3)
    assert factor * found[1].exposure == pytest.approx(found[0].exposure, rel=1e-3)
    maps = []
    for several, material in zip((views, scaled), found):
        folder = tmp_path / f"maps_{len(maps)}"
        folder.mkdir()
        stored = AlbedoMaps(folder, several[:1])
        stored.write(SURFACE, material)
        maps.append(next(iter(stored.photographs())))
    assert maps[0].weight.max() > 0.5
    np.testing.assert_allclose(maps[1].weight, maps[0].weight, atol=2e-3)
    np.testing.assert_allclose(maps[1].image, maps[0].image, atol=2e-3)


def test_captures_of_other_views_are_refused(scene: Scene, tmp_path: Path):
    files = CaptureFiles(
        TRUTH, [np.zeros((4, 80, 96), np.uint16)] * 5, [Lights(cap_directions(4), np.ones((4, 3)))] * 5
    )
    (tmp_path / "capture").mkdir()
    capture = read_capture(files.write_json(tmp_path / "capture"), None)
    with pytest.raises(SceneError, match="its views are not those of the images under known lights"):
        lit_views(capture, scene, TRUTH.data_c2w, SURFACE)


def test_light_between_elements_is_that_of_an_integrating_sphere():
    """Inside a sphere, every point receives the mean radiance of all: bounces are a geometric series. Outside: nothing."""
    ball = trimesh.creation.icosphere(subdivisions=4)
    outside = Interreflection(Surface(ball, RayCaster(ball)), 300)
    ones = np.ones((300, 2), np.float32)
    assert outside.between(ones, np.full(300, 0.6)).max() < 0.02
    hollow = trimesh.Trimesh(ball.vertices, ball.faces[:, ::-1], process=False)
    inside = Interreflection(Surface(hollow, RayCaster(hollow)), 300)
    expected = 0.5 + 0.5**2 + 0.5**3 + 0.5**4
    assert inside.between(ones, np.full(300, 0.5)) == pytest.approx(np.full((300, 2), expected), rel=0.03)
    assert inside.radiance(ones, np.full(300, 0.5)) == pytest.approx(np.full((300, 2), 0.5 * (1 + expected)), rel=0.03)

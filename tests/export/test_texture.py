# SPDX-License-Identifier: Apache-2.0
"""Colors from photographs: ray-traced photographs of a figure with known colors at all points."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import trimesh
from helpers.photographs import take_photographs, true_colors
from PIL import Image

from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.data.images import write_exr, write_png
from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.export.color_blending import blended, fill_unseen, view_gains
from pmni_nerfstudio.export.color_samples import BEST, ColorSamples, gather_samples
from pmni_nerfstudio.export.photographs import (
    Photograph,
    find_colors,
    linear_from_srgb,
    read_photographs,
    srgb_from_linear,
)
from pmni_nerfstudio.export.texture import surface_colors
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.transforms import transform_poses


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Figure whose limbs occlude parts of it, with photographs of twice the resolution of the maps."""
    folder = tmp_path_factory.mktemp("texture") / "scene"
    SynthCommand(out=folder, shape="figure", views=8, width=120, height=100, mesh_resolution=96).main()
    take_photographs(read_scene(folder), "figure", factor=2)
    return read_scene(folder)


@pytest.fixture(scope="module")
def mesh(scene: Scene) -> trimesh.Trimesh:
    """True surface, in the data world."""
    loaded = trimesh.load_mesh(scene.mesh_file, process=False)
    assert isinstance(loaded, trimesh.Trimesh)
    return loaded


@pytest.fixture(scope="module")
def photographs(scene: Scene) -> list[Photograph]:
    return photographs_of(scene)


def photographs_of(scene: Scene) -> list[Photograph]:
    colors = find_colors(scene)
    assert colors is not None
    return list(read_photographs(scene, poses_of(scene), colors))


def poses_of(scene: Scene) -> np.ndarray:
    assert scene.c2w is not None
    return transform_poses(scene.world_from_unit, scene.c2w)


def vertex_colors(mesh: trimesh.Trimesh, photographs: list[Photograph]) -> tuple[np.ndarray, np.ndarray]:
    """Colors of the vertices, sRGB from 0 to 255, and whether they are seen."""
    vertices, normals = np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals)
    colors, seen = surface_colors(mesh, RayCaster(mesh), vertices, normals, photographs)
    return 255 * srgb_from_linear(colors), seen


def true_vertex_colors(scene: Scene, mesh: trimesh.Trimesh) -> np.ndarray:
    return true_colors((mesh.vertices - scene.world_from_unit[:3, 3]) / scene.world_from_unit[0, 0])


def test_visible_vertices_get_their_colors_and_hidden_ones_are_not_seen(
    scene: Scene, mesh: trimesh.Trimesh, photographs: list[Photograph]
):
    vertices = np.asarray(mesh.vertices)
    colors, seen = vertex_colors(mesh, photographs)
    error = np.abs(colors - true_vertex_colors(scene, mesh)).max(axis=1)
    # Colors change by up to 3 values per pixel; a color of a wrong point is off by tens.
    assert seen.mean() > 0.7
    assert error[seen].mean() < 0.6
    assert np.quantile(error[seen], 0.999) < 6.0
    # Ground truth of visibility: an unblocked ray from the vertex to a camera that it faces.
    lifted = vertices + 1e-3 * np.linalg.norm(mesh.extents) * np.asarray(mesh.vertex_normals)
    visible = np.zeros(len(vertices), dtype=bool)
    for c2w in poses_of(scene):
        towards = c2w[:3, 3] - lifted
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        facing = (towards * mesh.vertex_normals).sum(axis=1) > 0
        visible |= facing & ~np.isfinite(RayCaster(mesh).cast(lifted, towards).distance)
    assert (~visible).sum() > 20  # some vertices are hidden from all cameras
    assert (seen & ~visible).mean() < 0.003
    # Hidden vertices are not black.
    assert colors.max(axis=1).min() > 10


def test_highlights_do_not_count_and_exposures_are_leveled(
    scene: Scene, mesh: trimesh.Trimesh, photographs: list[Photograph]
):
    rng = np.random.default_rng(0)
    gains = np.exp(rng.uniform(-0.2, 0.2, (len(photographs), 3)))
    gains /= np.exp(np.log(gains).mean(axis=0))
    spoiled = []
    for photograph, gain in zip(photographs, gains):
        image = photograph.image * gain.astype(np.float32)
        for center in rng.uniform(0.25, 0.75, (3, 2)) * image.shape[1::-1]:
            cv2.circle(image, center.astype(int).tolist(), 9, (0.97, 0.97, 0.97), -1)
        spoiled.append(photograph._replace(image=image))
    truth = true_vertex_colors(scene, mesh)
    vertices, normals = np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals)
    samples = gather_samples(mesh, RayCaster(mesh), vertices, normals.astype(np.float32), spoiled)
    assert np.abs(np.log(gains)).mean() > 0.08
    assert np.abs(np.log(view_gains(samples) * gains)).mean() < 0.03
    colors, seen = blended(samples, view_gains(samples))
    several = (samples.weights > 0).sum(axis=1) > 2
    error = np.abs(255 * srgb_from_linear(colors) - truth).max(axis=1)[several]
    mean = np.einsum("pk,pkc->pc", samples.weights, samples.colors.astype(float))[several]
    mean /= samples.weights[several].sum(axis=1)[:, None]
    naive = np.abs(255 * srgb_from_linear(mean) - truth[several]).max(axis=1)
    assert several.mean() > 0.2 and seen[several].all()
    assert error.mean() < 2.5 and np.quantile(error, 0.97) < 8
    assert naive.mean() > 3 * error.mean()  # what a weighted mean gives


def test_weights_vanish_at_borders_and_follow_confidence(mesh: trimesh.Trimesh, photographs: list[Photograph]):
    vertices, normals = np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals, dtype=np.float32)

    def weights(photograph: Photograph) -> np.ndarray:
        return gather_samples(mesh, RayCaster(mesh), vertices, normals, [photograph]).weights.max(axis=1)

    first = weights(photographs[0])
    edges = mesh.edges_unique
    border = (first[edges] > 0).any(axis=1) & (first[edges] == 0).any(axis=1)
    assert border.sum() > 50
    assert np.median(first[edges[border]].max(axis=1)) < 0.3 * np.median(first[first > 0])
    # Half the confidence is half the weight; without any, the point is not seen.
    factor = np.full_like(photographs[0].weight, 0.5)
    assert np.allclose(weights(photographs[0]._replace(weight=factor * photographs[0].weight)), 0.5 * first, rtol=1e-4)
    factor[:, factor.shape[1] // 2 :] = 0
    half = weights(photographs[0]._replace(weight=factor * photographs[0].weight))
    assert 0.2 < (half > 0).sum() / (first > 0).sum() < 0.8


def test_the_best_samples_are_kept():
    samples, rng = ColorSamples(4), np.random.default_rng(0)
    weights = rng.random((30, 4)).astype(np.float32)
    for view, row in enumerate(weights):
        samples.add(view, np.arange(4), np.repeat(row[:, None], 3, axis=1), row)
    assert np.allclose(np.sort(samples.weights.T, axis=0), np.sort(weights, axis=0)[-BEST:])
    assert np.allclose(samples.colors[..., 0], samples.weights, rtol=1e-3)
    assert (weights[samples.views, np.arange(4)[:, None]] == samples.weights).all()


def test_unseen_points_get_the_colors_around_them():
    x = np.linspace(0, 1, 2000)
    points = np.column_stack([x, 0 * x, 0 * x])
    colors = np.repeat(x[:, None], 3, axis=1).astype(np.float32)
    seen = np.abs(x - 0.5) > 0.02
    colors[~seen] = 0
    fill_unseen(colors, seen, points, 1.0)
    assert np.abs(colors[:, 0] - x).max() < 0.03


def test_encodings_are_decoded_to_linear_light(scene: Scene, tmp_path: Path):
    """Images of 8-bit sRGB, 16 bits and floats, and albedo maps, decode to the same linear values."""
    shutil.copytree(scene.root, tmp_path / "scene")
    linear = np.random.default_rng(0).uniform(0, 0.9, (100, 120, 3))
    eight = np.round(255 * srgb_from_linear(linear)).astype(np.uint8)

    def read(folder: str, suffix: str = ".png", **options) -> Photograph:
        found = find_colors(read_scene(tmp_path / "scene"), "auto")
        assert found is not None and found.folder == folder and found.files[0].suffix == suffix
        return next(read_photographs(scene, poses_of(scene), found, **options))

    def store(folder: str, write, suffix: str = ".png") -> None:
        shutil.rmtree(tmp_path / "scene" / folder, ignore_errors=True)
        (tmp_path / "scene" / folder).mkdir()
        for name in scene.names:
            write(tmp_path / "scene" / folder / f"{name}{suffix}")

    store("image", lambda path: write_png(path, eight))
    photograph = read("image")
    assert np.abs(photograph.image - linear).max() < 0.005 and photograph.clipped < 1
    assert np.abs(read("image", encoding="linear").image - eight / 255).max() < 1e-6
    store("image", lambda path: write_png(path, np.round(65535 * linear).astype(np.uint16)))
    assert np.abs(read("image").image - linear).max() < 1e-4
    assert np.abs(read("image", encoding="srgb").image - linear_from_srgb(linear)).max() < 1e-4
    store("image", lambda path: write_exr(path, 3 * linear), ".exr")
    photograph = read("image", ".exr")
    assert np.abs(photograph.image - 3 * linear).max() < 1e-5 and photograph.clipped == np.inf
    store("image", lambda path: tifffile.imwrite(path, linear.astype(np.float32)), ".tif")
    assert np.abs(read("image", ".tif").image - linear).max() < 1e-6
    # Albedo comes first and is linear; gray ones are, too.
    gray = np.round(255 * linear[..., 0]).astype(np.uint8)
    store("albedo", lambda path: write_png(path, gray))
    photograph = read("albedo", encoding="srgb")
    assert np.abs(photograph.image - linear[..., :1]).max() < 0.003
    assert photograph.weight.max() == 1
    store("confidence", lambda path: write_png(path, np.full((100, 120), 51, np.uint8)))
    assert read("albedo").weight.max() == pytest.approx(0.2)
    assert np.abs(linear_from_srgb(srgb_from_linear(linear)) - linear).max() < 1e-12


def test_linear_values_are_those_of_the_standard():
    stored, linear = np.array([0.0, 0.04, 0.5, 1.0]), [0, 0.04 / 12.92, 0.21404, 1]
    np.testing.assert_allclose(linear_from_srgb(stored), linear, atol=1e-5)


def test_invalid_photographs_are_one_line_errors(
    scene: Scene, mesh: trimesh.Trimesh, photographs: list[Photograph], tmp_path: Path
):
    bare = tmp_path / "bare"
    SynthCommand(out=bare, views=2, width=48, height=40, mesh_resolution=32).main()
    assert find_colors(read_scene(bare)) is None
    with pytest.raises(SceneError, match="image: is missing"):
        find_colors(read_scene(bare), "image")
    with pytest.raises(SceneError, match="albedo: is missing"):
        find_colors(read_scene(bare), "albedo")
    (bare / "image").mkdir()
    for name in ("00", "01"):
        Image.new("RGB", (48, 48)).save(bare / "image" / f"{name}.png")
    with pytest.raises(SceneError, match="00.png: 48x48 has another aspect ratio than the maps, 48x40"):
        photographs_of(read_scene(bare))
    (bare / "image" / "00.png").write_bytes(b"no picture")
    with pytest.raises(SceneError, match="00.png: is not a readable image"):
        photographs_of(read_scene(bare))
    # Cameras behind the object, looking away from it.
    away = [p._replace(c2w=p.c2w @ np.diag([-1.0, 1, -1, 1])) for p in photographs]
    with pytest.raises(PmniError, match="no photograph sees"):
        vertex_colors(mesh, away)

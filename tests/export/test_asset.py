# SPDX-License-Identifier: Apache-2.0
"""glTF files of `pmni asset`: their structure, frame, tangents and what their textures show."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trimesh
from helpers.gltf import Glb, validated_messages
from helpers.photographs import take_photographs, true_colors
from PIL import Image

from pmni_nerfstudio import cli
from pmni_nerfstudio.commands.asset import AssetCommand, units_of
from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.export import asset as asset_module
from pmni_nerfstudio.export.asset import screen_coverage
from pmni_nerfstudio.export.asset_frame import asset_frame
from pmni_nerfstudio.export.baking import ambient_occlusion
from pmni_nerfstudio.export.tangents import vertex_tangents
from pmni_nerfstudio.geometry.normals import angular_error_deg
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.transforms import transform_poses


def sampled(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear lookup at (P, 2) glTF coordinates: from the upper left corner, texel centers at half-integers."""
    size = np.array([texture.shape[1], texture.shape[0]])
    at = (uv * size - 0.5).clip(0, size - 1.001)
    low = at.astype(int)
    x, y = (at - low).T[:, :, None]
    (i, j), color = low.T, texture
    return (1 - y) * ((1 - x) * color[j, i] + x * color[j, i + 1]) + y * (
        (1 - x) * color[j + 1, i] + x * color[j + 1, i + 1]
    )


def shaded(glb: Glb, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, ...]:
    """A slow renderer: hit points, normals by the normal map, normals of the level, texture coordinates, and what is hit."""
    hits = RayCaster(glb.mesh()).cast(origins, directions)
    hit = np.isfinite(hits.distance)
    corners, weights = (
        glb.faces[hits.face[hit]],
        np.column_stack([1 - hits.uv[hit].sum(axis=1), hits.uv[hit]])[:, :, None],
    )
    uv = (weights * glb.uv[corners]).sum(axis=1)
    colors = sampled(glb.texture(glb.material, "normalTexture"), uv)
    local = 2 * colors / 255 - 1
    normals, mapped = np.empty((len(uv), 3)), np.empty((len(uv), 3))
    for p, (corner, weight) in enumerate(zip(corners, weights)):
        normal = (weight * glb.normals[corner]).sum(axis=0)
        normal /= np.linalg.norm(normal)
        tangent = (weight * glb.tangents[corner, :3]).sum(axis=0)
        tangent /= np.linalg.norm(tangent)
        bitangent = np.cross(normal, tangent) * glb.tangents[corner[0], 3]
        normals[p] = normal
        mapped[p] = local[p] @ np.stack([tangent, bitangent, normal])
    points = origins[hit] + hits.distance[hit, None] * directions[hit]
    return points, mapped, normals, uv, hit


def orthographic_rays(
    center: np.ndarray, radius: float, towards: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Parallel rays through a square grid around a center."""
    right = np.cross(towards, [0.3, 0.9, 0.1])
    right /= np.linalg.norm(right)
    down = np.cross(towards, right)
    grid = np.stack(np.meshgrid(*[np.linspace(-radius, radius, side)] * 2), axis=-1).reshape(-1, 2)
    origins = center - 3 * radius * towards + grid @ np.stack([right, down])
    return origins, np.broadcast_to(towards, origins.shape)


def bumpy(points: np.ndarray) -> np.ndarray:
    """Radius (P,) of a star-shaped surface in the direction of points (P, 3)."""
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    return 20 * (1 + 0.06 * np.sin(7 * unit[:, 0]) * np.cos(8 * unit[:, 1] + 1) + 0.05 * np.sin(9 * unit[:, 2]))


def bumpy_normals(points: np.ndarray) -> np.ndarray:
    """Gradient of |p| - bumpy(p) by finite differences."""
    step = 1e-4
    gradient = [
        (np.linalg.norm(points + e, axis=1) - bumpy(points + e))
        - (np.linalg.norm(points - e, axis=1) - bumpy(points - e))
        for e in step * np.eye(3)
    ]
    return np.stack(gradient, axis=1)


@pytest.fixture(scope="module")
def bumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the asset of a bumpy sphere of 20k faces, off the origin, in millimeters, with z up."""
    folder = tmp_path_factory.mktemp("asset")
    mesh = trimesh.creation.icosphere(5)
    vertices = mesh.vertices * bumpy(mesh.vertices)[:, None] + [5, -7, 11]
    trimesh.Trimesh(vertices, mesh.faces, process=False).export(folder / "mesh.ply")
    formats = ("glb", "obj", "stl")
    out = folder / "out"
    AssetCommand(
        result=folder, out=out, faces=(5000, 1000), texture_size=512, units="mm", up="z", formats=formats
    ).main()
    return folder


def data_points(points: np.ndarray) -> np.ndarray:
    """Points of the files in the frame of the bumpy sphere: y was z, and meters were millimeters."""
    return 1000 * np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1) - [5, -7, 11]


@pytest.mark.parametrize(("faces", "limit_deg"), [(5000, 1.5), (1000, 4.0)])
def test_normal_maps_show_the_normals_of_the_full_surface(bumps: Path, faces: int, limit_deg: float):
    glb = Glb(bumps / "out" / f"mesh_{faces}.glb")
    assert len(glb.faces) == faces
    center, radius = glb.mesh().bounds.mean(axis=0), 0.026
    for towards in np.array([[0.6, 0.0, 0.8], [-0.48, 0.8, -0.36]]):
        points, mapped, normals, _, _ = shaded(glb, *orthographic_rays(center, radius, towards, 80))
        assert len(points) > 2500
        truth = bumpy_normals(data_points(points))
        truth = np.stack([truth[:, 0], truth[:, 2], -truth[:, 1]], axis=1)
        error = angular_error_deg(mapped, truth)
        assert error.mean() < limit_deg
        # The level's own normals are far from it.
        assert angular_error_deg(normals, truth).mean() > 1.8 * error.mean()


def test_files_have_meters_and_y_up(bumps: Path):
    full = trimesh.load_mesh(bumps / "mesh.ply")
    mesh = trimesh.load_mesh(bumps / "out" / "mesh_5000.glb")
    low, high = np.array(full.bounds) / 1000
    assert np.abs(mesh.bounds - [[low[0], low[2], -high[1]], [high[0], high[2], -low[1]]]).max() < 3e-4
    assert mesh.volume == pytest.approx(full.volume / 1e9, rel=0.01)
    record = json.loads((bumps / "out" / "asset.json").read_text())
    assert (record["units"], record["meters_per_unit"], record["scale_known"]) == ("mm", 0.001, True)
    assert record["up"] == [0, 0, 1] and record["up_from"] == "--up z"
    turned = np.array(record["file_from_data"]) @ np.array([5.0, -7.0, 11.0])
    assert np.allclose(turned, [0.005, 0.011, 0.007])
    assert [level["faces"] for level in record["levels"]] == [5000, 1000]
    # Distances of the levels in the data's units, against a measurement from the faces' centers.
    mesh = trimesh.load_mesh(bumps / "out" / "mesh_1000.stl", process=False)
    apart = RayCaster(full).distance(mesh.triangles_center)
    assert record["levels"][1]["mean_distance"] == pytest.approx(apart.mean(), rel=0.5)
    assert apart.max() < record["levels"][1]["max_distance"] < 1


def test_stl_and_obj_have_the_axes_and_units_of_the_data(bumps: Path):
    glb, folder = Glb(bumps / "out" / "mesh_1000.glb"), bumps / "out"
    stl = trimesh.load_mesh(folder / "mesh_1000.stl", process=False)
    obj = trimesh.load_mesh(folder / "mesh_1000.obj", process=False)
    assert (
        np.abs(
            data_points(glb.positions[glb.faces].reshape(-1, 3)) - (stl.triangles.reshape(-1, 3) - [5, -7, 11])
        ).max()
        < 1e-3
    )
    assert np.abs(stl.triangles - obj.triangles).max() < 1e-4
    assert np.abs(obj.visual.uv - (glb.uv * [1, -1] + [0, 1])).max() < 1e-5
    entries = dict(line.split(" ", 1) for line in (folder / "mesh_1000.mtl").read_text().splitlines())
    assert entries["norm"] == "mesh_1000_normal.png"
    assert np.asarray(Image.open(folder / entries["norm"])).shape == (512, 512, 3)
    assert "mesh_1000_normal.png" in json.loads((folder / "asset.json").read_text())["levels"][1]["files"]


def test_one_file_holds_all_levels(bumps: Path):
    """Readers without MSFT_lod draw the nodes of the scene, which is the finest level alone."""
    tree = Glb(bumps / "out" / "mesh_lod.glb").tree
    assert tree["extensionsUsed"] == ["MSFT_lod"] and "extensionsRequired" not in tree
    assert tree["scenes"] == [{"nodes": [0]}]
    finest, coarse = tree["nodes"]
    assert (finest["name"], coarse["name"]) == ("mesh_5000", "mesh_1000")
    assert finest["extensions"]["MSFT_lod"]["ids"] == [1]
    coverage = finest["extras"]["MSFT_screencoverage"]
    assert coverage == screen_coverage([5000, 1000]) and coverage[0] == pytest.approx(0.0096, abs=1e-4)
    assert coverage[1] == 0
    counts = [tree["accessors"][mesh["primitives"][0]["indices"]]["count"] // 3 for mesh in tree["meshes"]]
    assert counts == [5000, 1000]
    images = [tree["textures"][material["normalTexture"]["index"]]["source"] for material in tree["materials"]]
    assert [tree["images"][index]["name"].split()[0] for index in images] == ["mesh_5000", "mesh_1000"]


@pytest.mark.parametrize("name", ["mesh_1000", "mesh_lod"])
def test_the_validator_of_khronos_finds_nothing(bumps: Path, name: str):
    messages = validated_messages(bumps / "out" / f"{name}.glb")
    # Of no use to readers without the extension: the other levels.
    codes = {message["code"] for message in messages}
    assert codes <= ({"UNSUPPORTED_EXTENSION", "UNUSED_OBJECT"} if name == "mesh_lod" else set())


def test_the_structure_is_that_of_gltf(bumps: Path):
    glb = Glb(bumps / "out" / "mesh_1000.glb")
    tree = glb.tree
    position = tree["accessors"][glb.primitive["attributes"]["POSITION"]]
    assert position["min"] == glb.positions.min(axis=0).tolist()
    assert position["max"] == glb.positions.max(axis=0).tolist()
    assert np.abs(np.linalg.norm(glb.normals, axis=1) - 1).max() < 1e-5
    assert np.abs(np.linalg.norm(glb.tangents[:, :3], axis=1) - 1).max() < 1e-5
    assert np.abs((glb.tangents[:, :3] * glb.normals).sum(axis=1)).max() < 1e-5
    assert set(np.unique(glb.tangents[:, 3])) <= {-1.0, 1.0}
    assert glb.uv.min() >= 0 and glb.uv.max() <= 1
    assert sorted(np.unique(glb.faces)) == list(range(len(glb.positions)))
    assert glb.texture(glb.material, "normalTexture").shape == (512, 512, 3)
    assert glb.texture(glb.material, "occlusionTexture").shape == (512, 512, 3)
    assert "baseColorTexture" not in glb.material["pbrMetallicRoughness"]


def test_tangents_point_where_u_grows():
    """A sphere with longitude as u and latitude as v; also mirrored, where u grows to the west."""
    theta, phi = np.meshgrid(np.linspace(0.3, 2.8, 60), np.linspace(0, 3, 80), indexing="ij")
    points = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1).reshape(-1, 3)
    index = np.arange(60 * 80).reshape(60, 80)
    a, b, c, d = index[:-1, :-1].ravel(), index[1:, :-1].ravel(), index[1:, 1:].ravel(), index[:-1, 1:].ravel()
    faces = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
    mesh = trimesh.Trimesh(points, faces, vertex_normals=points, process=False)
    east = np.stack([-np.sin(phi), np.cos(phi), 0 * phi], axis=-1).reshape(-1, 3)
    north = np.cross(points, east)
    uv = np.stack([phi, np.pi - theta], axis=-1).reshape(-1, 2) / 4
    for mirror in (1.0, -1.0):
        tangents = vertex_tangents(mesh, uv * [mirror, 1])
        inner = np.unique(index[1:-1, 1:-1])
        assert angular_error_deg(tangents[inner, :3], mirror * east[inner]).max() < 0.5
        bitangent = tangents[:, 3:] * np.cross(points, tangents[:, :3])
        assert angular_error_deg(bitangent[inner], north[inner]).max() < 0.5


def test_ambient_occlusion_of_a_ball_on_a_plane():
    """The ball hides sin^2 of its angular radius, seen from where it touches the plane's normal: (R / d)^2."""
    plane = trimesh.creation.box([40, 40, 0.1]).subdivide().subdivide()
    ball = trimesh.creation.icosphere(4, 1.0)
    ball.apply_translation([0, 0, 2.05])
    mesh = trimesh.util.concatenate([plane, ball])
    open_share = ambient_occlusion(mesh, RayCaster(mesh), count=512)
    distance = np.linalg.norm(mesh.vertices - [0, 0, 0.05], axis=1)
    assert open_share[distance.argmin()] == pytest.approx(1 - (1 / 2) ** 2, abs=0.02)
    lowest = np.abs(mesh.vertices - [0, 0, 1.05]).sum(axis=1).argmin()
    assert open_share[lowest] < 0.03
    assert open_share[np.abs(mesh.vertices - [0, 0, 3.05]).sum(axis=1).argmin()] == 1


def test_colors_come_from_the_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    gather = asset_module.surface_colors
    monkeypatch.setattr(asset_module, "surface_colors", lambda *given: (calls.append(1), gather(*given))[1])
    folder = tmp_path / "scene"
    SynthCommand(out=folder, shape="sphere", views=5, width=64, height=56, mesh_resolution=64).main()
    take_photographs(read_scene(folder), "sphere", factor=2)
    scene = read_scene(folder)
    assert scene.c2w is not None and scene.mesh_file is not None
    np.save(tmp_path / "poses.npy", transform_poses(scene.world_from_unit, scene.c2w))
    AssetCommand(
        result=scene.mesh_file,
        out=tmp_path / "out",
        data=folder,
        poses=tmp_path / "poses.npy",
        faces=(4000, 2000),
        texture_size=256,
    ).main()
    assert len(calls) == 1  # photographs are read once for both levels
    record = json.loads((tmp_path / "out" / "asset.json").read_text())
    # The scene has a camera file, whose units are taken to be millimeters.
    assert record["units"] == "mm"
    glb = Glb(tmp_path / "out" / "mesh_2000.glb")
    to_data = np.linalg.inv(np.array(record["file_from_data"]))
    center, radius = glb.mesh().bounds.mean(axis=0), 0.6 * glb.mesh().scale
    ray = to_data.T @ (scene.c2w[0, :3, 2])  # as the first camera looks, in the axes of the file
    points, _, _, uv, _ = shaded(glb, *orthographic_rays(center, radius, ray / np.linalg.norm(ray), 70))
    found = sampled(glb.texture(glb.material["pbrMetallicRoughness"], "baseColorTexture"), uv)
    unit = (points @ to_data.T - scene.world_from_unit[:3, 3]) / scene.world_from_unit[0, 0]
    error = np.abs(found - true_colors(unit)).max(axis=1)
    assert len(points) > 600 and np.median(error) < 3 and np.quantile(error, 0.95) < 10
    # No camera sees the underside: it is filled and marked.
    unseen = np.asarray(Image.open(tmp_path / "out" / "mesh_2000_unseen.png"))
    assert unseen.shape == (256, 256) and set(np.unique(unseen)) == {0, 255}
    assert 0 < record["levels"][1]["unseen"] < 0.4
    assert record["base_color"] == "image"


def test_files_of_an_earlier_run_that_are_not_made_again_are_removed(tmp_path: Path):
    out, mesh = tmp_path / "out", tmp_path / "mesh.ply"
    trimesh.creation.icosphere(3).export(mesh)
    run = partial(AssetCommand, out=out, texture_size=32, occlusion=False)
    run(result=mesh, faces=(600, 300), formats=("glb", "obj", "stl")).main()
    for name in ("mesh_900.glb", "notes.txt"):
        (out / name).write_bytes(b"of somebody else")
    run(result=mesh, faces=(600, 400), formats=("glb",)).main()
    kept = {"mesh_900.glb", "notes.txt", "asset.json"}
    assert {path.name for path in out.iterdir()} == kept | {"mesh_600.glb", "mesh_400.glb", "mesh_lod.glb"}
    # Files that this run reads stay, and so do those that a damaged record names.
    run(result=out / "mesh_400.glb", faces=(200,)).main()
    assert {path.name for path in out.iterdir()} >= {"mesh_600.glb", "mesh_400.glb", "mesh_200.glb"}
    (out / "asset.json").write_text(
        json.dumps({"levels": [{"files": ["../mesh.ply", "notes.txt"]}], "all_levels": None, "material": None})
    )
    run(result=mesh, faces=(200,)).main()
    assert mesh.is_file() and (out / "notes.txt").is_file()


def test_up_is_that_of_the_cameras():
    """Cameras that look down at an object from a ring about z, rolled by 10 degrees at most."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    forward = np.stack([-np.cos(angles), -np.sin(angles), np.full(12, -0.5)], axis=1)
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    c2w = np.tile(np.eye(4), (12, 1, 1))
    c2w[:, :3, :3] = np.stack([right, np.cross(forward, right), forward], axis=2)
    frame = asset_frame(None, "mm", c2w)
    assert frame.up.tolist() == [0, 0, 1] and frame.meters == 0.001
    tilt = trimesh.transformations.rotation_matrix(0.5, [1, 1, 0])
    tilted = asset_frame(None, "object units", tilt @ c2w)
    assert np.allclose(tilted.up, tilt[:3, 2]) and tilted.meters is None and tilted.scale == 1
    for each in (frame, tilted, asset_frame("-y", None, None), asset_frame("y", None, None)):
        assert np.allclose(each.rotation @ each.up, [0, 1, 0], atol=1e-12)
        assert np.linalg.det(each.rotation) == pytest.approx(1)


@pytest.mark.parametrize(
    ("scene", "record", "units"),
    [
        ("with poses", {"aligned": False, "units": "cm"}, "cm"),
        ("with poses", {}, "mm"),
        ("without poses", {}, "object units"),
        # Figures are in the units of the ground truth, the mesh is not.
        ("without poses", {"aligned": True, "units": "mm"}, "object units"),
        (None, {"aligned": True, "units": "mm"}, None),
        (None, {"aligned": False, "units": "m"}, "m"),
        (None, {}, None),
    ],
)
def test_units_are_those_of_the_mesh(scene: str | None, record: dict[str, Any], units: str | None):
    read = None if scene is None else SimpleNamespace(c2w=np.eye(4)[None] if scene == "with poses" else None)
    result: Any = SimpleNamespace(scene=read, record=record)
    assert units_of(result) == units


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--faces", "2"], "faces: "),
        (["--texture-size", "4"], "texture-size: "),
        (["--formats"], "formats: is empty"),
        (["--units", "parsec"], "units: parsec is not known; give one of m, "),
    ],
)
def test_mistakes_are_one_line_errors(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        cli.main(["asset", str(tmp_path), str(tmp_path / "out"), *options])
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_mesh_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        cli.main(["asset", str(tmp_path), str(tmp_path / "out")])
    assert "has no mesh; give a folder" in capsys.readouterr().err


def test_colors_that_are_asked_for_have_to_exist(tmp_path: Path, capsys: pytest.CaptureFixture):
    trimesh.creation.icosphere(2).export(tmp_path / "mesh.ply")
    with pytest.raises(SystemExit):
        cli.main(["asset", str(tmp_path), str(tmp_path / "out"), "--color", "albedo"])
    error = capsys.readouterr().err
    assert error == f"error: --color albedo: {tmp_path} has no scene; give --data and --poses, or leave out --color\n"

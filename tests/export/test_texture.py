# SPDX-License-Identifier: Apache-2.0
"""Colors from photographs: ray-traced photographs of a figure with known colors at all points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from helpers.photographs import look_up, read_glb, take_photographs, true_colors
from PIL import Image
from scipy.spatial import KDTree

from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.export.texture import read_photographs, surface_colors, texture_mesh
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


def poses_of(scene: Scene) -> np.ndarray:
    assert scene.c2w is not None
    return transform_poses(scene.world_from_unit, scene.c2w)


def unit(scene: Scene, points: np.ndarray) -> np.ndarray:
    return (points - scene.world_from_unit[:3, 3]) / scene.world_from_unit[0, 0]


def test_visible_vertices_get_their_colors_and_hidden_ones_are_not_seen(scene: Scene, mesh: trimesh.Trimesh):
    vertices, poses = np.asarray(mesh.vertices), poses_of(scene)
    photographs = read_photographs(scene, poses, progress=False)
    colors, seen = surface_colors(mesh, vertices, np.asarray(mesh.vertex_normals), photographs)
    error = np.abs(colors - true_colors(unit(scene, vertices))).max(axis=1)
    # Colors change by up to 3 values per pixel; a color of a wrong point is off by tens.
    assert seen.mean() > 0.7
    assert error[seen].mean() < 0.6
    assert np.quantile(error[seen], 0.999) < 6.0
    # Ground truth of visibility: an unblocked ray from the vertex to a camera that it faces.
    lifted = vertices + 1e-3 * np.linalg.norm(mesh.extents) * np.asarray(mesh.vertex_normals)
    visible = np.zeros(len(vertices), dtype=bool)
    for c2w in poses:
        towards = c2w[:3, 3] - lifted
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        facing = (towards * mesh.vertex_normals).sum(axis=1) > 0
        visible |= facing & ~np.isfinite(RayCaster(mesh).cast(lifted, towards).distance)
    assert (~visible).sum() > 20  # some vertices are hidden from all cameras
    assert (seen & ~visible).mean() < 0.002
    # Hidden vertices are not black.
    assert colors.max(axis=1).min() > 10


def test_the_texture_of_a_glb_has_the_colors(scene: Scene, mesh: trimesh.Trimesh, tmp_path: Path):
    photographs = list(read_photographs(scene, poses_of(scene), progress=False))
    texture_mesh(mesh, photographs, size=512).export(tmp_path / "textured.glb")
    positions, uv, texture = read_glb(tmp_path / "textured.glb")
    assert 256 <= min(texture.shape[:2]) and max(texture.shape[:2]) <= 1024
    # Vertices are those of the mesh, with the colors of their positions.
    _, seen = surface_colors(mesh, np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals), photographs)
    distance, index = KDTree(np.asarray(mesh.vertices)).query(positions)
    assert np.max(distance) < 1e-4
    error = np.abs(look_up(texture, uv) - true_colors(unit(scene, positions))).max(axis=1)[seen[index]]
    assert error.mean() < 1.2
    assert np.quantile(error, 0.99) < 6


def test_colors_are_means_over_views_weighted_by_cosines(scene: Scene, mesh: trimesh.Trimesh):
    """Photographs of uniform colors: a vertex gets the weighted mean of the views that see it."""
    poses = poses_of(scene)
    photographs = [
        p._replace(image=np.full_like(p.image, 30 * i))
        for i, p in enumerate(read_photographs(scene, poses, progress=False))
    ][:2]
    vertices, normals = np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals)
    colors, seen = surface_colors(mesh, vertices, normals, photographs)
    each = [surface_colors(mesh, vertices, normals, [p])[1] for p in photographs]
    assert (seen == each[0] | each[1]).all()
    towards = poses[:2, None, :3, 3] - vertices
    towards /= np.linalg.norm(towards, axis=2, keepdims=True)
    cosine = (towards * normals).sum(axis=2) * np.array(each)
    expected = 30 * cosine[1, seen] / cosine[:, seen].sum(axis=0)
    assert (each[0] & each[1]).sum() > 100
    assert np.abs(colors[seen, 0] - expected).max() <= 0.5 + 1e-6


def test_invalid_photographs_are_one_line_errors(scene: Scene, mesh: trimesh.Trimesh, tmp_path: Path):
    bare = tmp_path / "bare"
    SynthCommand(out=bare, views=2, width=48, height=40, mesh_resolution=32).main()
    with pytest.raises(SceneError, match="image: is missing"):
        next(read_photographs(read_scene(bare), np.eye(4)[None]))
    (bare / "image").mkdir()
    for name in ("00", "01"):
        Image.new("RGB", (48, 48)).save(bare / "image" / f"{name}.png")
    with pytest.raises(SceneError, match="00.png: 48x48 has another aspect ratio than the maps, 48x40"):
        next(read_photographs(read_scene(bare), np.eye(4)[None]))
    (bare / "image" / "00.png").write_bytes(b"no picture")
    with pytest.raises(SceneError, match="00.png: can't be read"):
        next(read_photographs(read_scene(bare), np.eye(4)[None]))
    away = poses_of(scene)
    away[:, :3, 3] *= -1  # behind the object, looking away from it
    with pytest.raises(PmniError, match="no photograph sees"):
        vertices, normals = np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals)
        surface_colors(mesh, vertices, normals, read_photographs(scene, away, progress=False))

# SPDX-License-Identifier: Apache-2.0
"""Meshes far from the origin of their world: files, ray casting and simplification."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from trimesh.visual import ColorVisuals

from pmni_nerfstudio.data.mesh_files import is_far_away
from pmni_nerfstudio.data.result_files import read_mesh, write_mesh
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.mesh import simplify
from pmni_nerfstudio.geometry.ray_casting import RayCaster

UTM = np.array([412345.25, 5412345.75, 231.5])
ECEF = np.array([4075539.5, 931735.25, 4801629.125])


def ball(center: np.ndarray, radius: float = 0.12, colors: bool = False) -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=radius)
    values = np.random.default_rng(0).integers(0, 256, (len(mesh.vertices), 4), dtype=np.uint8)
    return trimesh.Trimesh(mesh.vertices + center, mesh.faces, process=False, vertex_colors=values if colors else None)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
@pytest.mark.parametrize("center", [np.zeros(3), UTM, ECEF])
def test_vertices_keep_their_places(suffix: str, center: np.ndarray, tmp_path: Path):
    mesh = ball(center)
    write_mesh(tmp_path / f"mesh{suffix}", mesh)
    read = read_mesh(tmp_path / f"mesh{suffix}")
    np.testing.assert_allclose(read.vertices, mesh.vertices, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(read.faces, mesh.faces)


def test_stl_is_refused_where_it_would_lose_the_shape(tmp_path: Path):
    write_mesh(tmp_path / "near.stl", ball(np.zeros(3)))
    with pytest.raises(PmniError, match="single precision.*write .ply, .obj or .glb"):
        write_mesh(tmp_path / "far.stl", ball(UTM))
    assert [path.name for path in tmp_path.iterdir()] == ["near.stl"]


def test_usual_worlds_are_not_far_away():
    assert not is_far_away(np.asarray(ball(np.array([210.0, -90, 640]), 50.0).vertices))
    assert is_far_away(np.asarray(ball(UTM).vertices)) and not is_far_away(np.zeros((0, 3)))


def test_vertex_colors_are_kept_in_double_precision(tmp_path: Path):
    mesh = ball(UTM, colors=True)
    write_mesh(tmp_path / "mesh.ply", mesh)
    read = read_mesh(tmp_path / "mesh.ply").visual
    assert isinstance(read, ColorVisuals) and isinstance(mesh.visual, ColorVisuals)
    np.testing.assert_array_equal(read.vertex_colors, mesh.visual.vertex_colors)


def test_rays_and_distances_far_from_the_origin():
    near, far = ball(np.zeros(3)), ball(ECEF)
    rng = np.random.default_rng(1)
    origins, aims = rng.normal(size=(200, 3)), rng.normal(size=(200, 3)) * 0.05
    hits, there = RayCaster(near).cast(origins, aims - origins), RayCaster(far).cast(origins + ECEF, aims - origins)
    np.testing.assert_allclose(there.distance, hits.distance, atol=1e-5)
    np.testing.assert_allclose(RayCaster(far).distance(origins + ECEF), RayCaster(near).distance(origins), atol=1e-6)
    points, normals = RayCaster(far).closest(origins + ECEF)
    expected, expected_normals = RayCaster(near).closest(origins)
    np.testing.assert_allclose(points - ECEF, expected, atol=1e-5)
    np.testing.assert_allclose(normals, expected_normals, atol=1e-4)


def test_simplification_far_from_the_origin():
    small = simplify(ball(ECEF), 800)
    assert 700 <= len(small.faces) <= 800
    np.testing.assert_allclose(np.linalg.norm(small.vertices - ECEF, axis=1), 0.12, atol=0.003)

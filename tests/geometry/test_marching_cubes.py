# SPDX-License-Identifier: Apache-2.0
"""Marching cubes of analytic distances: size, topology, orientation, completeness, and skimage's result."""

import numpy as np
import pytest
import torch
import trimesh
from skimage.measure import marching_cubes

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.marching_cubes import extract_mesh
from pmni_nerfstudio.geometry.marching_cubes_table import CORNERS, EDGES, triangle_table


def extract(sdf, resolution, **kwargs):
    return extract_mesh(sdf, resolution, device="cpu", progress=False, **kwargs)


def sphere(radius, center=(0.0, 0.0, 0.0)):
    return lambda x: (x - torch.tensor(center)).norm(dim=-1) - radius


def torus(x):
    return torch.hypot(x[:, :2].norm(dim=-1) - 0.6, x[:, 2]) - 0.2


def box(half, center=(0.0, 0.0, 0.0)):
    def sdf(x):
        q = (x - torch.tensor(center)).abs() - torch.tensor(half)
        return q.clamp(min=0).norm(dim=-1) + q.amax(dim=-1).clamp(max=0)

    return sdf


def waves(x):
    """Far from a distance: slopes from 0 to 2.4, and many saddles, where faces of cells are ambiguous."""
    return torch.sin(7 * x[:, 0]) * torch.cos(6 * x[:, 1]) + torch.sin(5 * x[:, 2] + 1) * torch.cos(8 * x[:, 0]) * 0.3


def counted(sdf):
    """Wrap an SDF; returns the wrapper and a list with the number of points evaluated."""
    count = [0]

    def counting(x):
        count[0] += len(x)
        return sdf(x)

    return counting, count


def dense_mesh(sdf, resolution):
    """skimage's marching cubes on the dense grid, and the number of grid edges that the surface crosses."""
    axis = torch.linspace(-1, 1, resolution + 1)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    volume = torch.maximum(sdf(grid), grid.norm(dim=-1) - (1 - 1e-6)).reshape((resolution + 1,) * 3).numpy()
    vertices, faces, _, _ = marching_cubes(volume, 0.0, spacing=(2 / resolution,) * 3)
    cuts = sum(int(np.diff(volume < 0, axis=a).sum()) for a in range(3))
    return trimesh.Trimesh(vertices - 1, faces, process=True), cuts


def assert_sound(mesh):
    """The mesh is closed, consistently oriented outward, and has no unused vertices."""
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0
    assert np.array_equal(np.unique(mesh.faces), np.arange(len(mesh.vertices)))


@pytest.mark.parametrize("resolution", [33, 100, 163])
def test_sphere_has_its_radius_and_volume_and_faces_outward(resolution):
    center = np.array([0.1, -0.05, 0.02])
    mesh = extract(sphere(0.7, tuple(center)), resolution)
    assert_sound(mesh)
    assert mesh.euler_number == 2
    radii = np.linalg.norm(mesh.vertices - center, axis=1)
    assert np.abs(radii - 0.7).max() < 0.02 / resolution
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.7**3, rel=10 / resolution**2)
    outward = ((mesh.triangles_center - center) * mesh.face_normals).sum(axis=1)
    assert (outward > 0).all()


def test_torus_has_genus_one():
    mesh = extract(torus, 120)
    assert_sound(mesh)
    assert mesh.euler_number == 0
    assert mesh.volume == pytest.approx(2 * np.pi**2 * 0.6 * 0.2**2, rel=2e-3)


def test_zeros_on_lattice_points_stay_a_manifold_even_without_indices():
    mesh = extract(box((0.5, 0.25, 0.75)), 64)  # every face on a lattice plane
    assert_sound(mesh)
    assert mesh.euler_number == 2
    welded = trimesh.Trimesh(mesh.triangles.reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3), process=True)
    assert welded.is_watertight
    assert welded.euler_number == 2


@pytest.mark.parametrize(("resolution", "scale"), [(64, 0.05), (79, 1.0), (96, 20.0)])
@pytest.mark.parametrize("sdf", [torus, waves, sphere(1.3, (1.2, 0.3, 0.2))], ids=["torus", "waves", "cut by the ball"])
def test_agrees_with_dense_marching_cubes(sdf, resolution, scale):
    def scaled(x):
        return scale * sdf(x)

    mesh = extract(scaled, resolution, keep_components=0)
    dense, cuts = dense_mesh(scaled, resolution)
    assert_sound(mesh)
    assert len(mesh.vertices) == cuts
    # They differ where a crease lies within a cell and at ambiguous faces, which skimage resolves differently.
    assert mesh.area == pytest.approx(dense.area, rel=1e-2)
    assert mesh.volume == pytest.approx(dense.volume, abs=0.1 * dense.area * 2 / resolution)
    if sdf is not waves:
        assert mesh.euler_number == dense.euler_number


def test_plate_as_thin_as_a_cell_is_complete_at_512():
    cell = 2 / 512
    half = (0.6, 0.5, 0.5 * 1.05 * cell)
    mesh = extract(box(half, (0.0, 0.0, 0.3 * cell)), 512)
    assert_sound(mesh)
    assert mesh.euler_number == 2
    assert mesh.extents == pytest.approx(2 * np.array(half), abs=0.3 * cell)
    assert mesh.volume == pytest.approx(8 * np.prod(half), rel=0.03)


def test_nested_surfaces_are_both_found():
    def shell(x):
        return (x.norm(dim=-1) - 0.5).abs() - 0.02

    mesh = extract(shell, 200)
    assert mesh.is_watertight
    assert mesh.body_count == 2
    assert mesh.euler_number == 4
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * (0.52**3 - 0.48**3), rel=2e-3)


def test_distances_that_are_wrong_away_from_the_surface_make_no_difference():
    def distorted(x):  # right within 0.1 of the surface; beyond, five times too steep on one side and flat on the other
        f = torus(x)
        return torch.where(f > 0.1, 5 * f - 0.4, f.clamp(min=-0.1))

    mesh = extract(distorted, 200)
    expected = extract(torus, 200)
    assert_sound(mesh)
    assert len(mesh.faces) == len(expected.faces)


def test_surface_found_in_few_blocks_is_followed_completely():
    def step(x):  # nearly flat, with a jump of 0.8 at the surface, too thin to show in the slope's percentile
        f = sphere(0.25)(x)
        return torch.where(f.abs() < 0.002, 200 * f, 0.4 * f.sign() + 0.01 * (f - 0.002 * f.sign()))

    mesh = extract(step, 100)
    assert_sound(mesh)
    assert mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.25**3, rel=0.02)


def test_surface_that_leaves_the_ball_is_closed_there():
    mesh = extract(lambda x: x[:, 2] - 0.1, 90)
    assert_sound(mesh)
    assert mesh.euler_number == 2
    height = 1.1
    assert mesh.volume == pytest.approx(np.pi * height**2 * (3 - height) / 3, rel=5e-3)


def test_small_components_are_dropped():
    big, small = sphere(0.4, (0.4, 0.0, 0.0)), sphere(0.1, (-0.5, 0.0, 0.0))

    def both(x):
        return torch.minimum(big(x), small(x))

    assert extract(both, 96, keep_components=0.05).body_count == 2  # areas 1 : 16
    mesh = extract(both, 96, keep_components=0.1)
    assert_sound(mesh)
    assert mesh.body_count == 1
    assert mesh.bounds[0, 0] > -0.1


def test_bound_enlarges_the_domain():
    mesh = extract(sphere(1.2), 100, bound=1.3)
    assert_sound(mesh)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 1.2**3, rel=2e-3)


def test_512_evaluates_a_small_share_of_the_cube():
    counting, count = counted(sphere(0.35))
    mesh = extract(counting, 512)
    assert count[0] < 0.015 * 513**3  # less than 1/66 of the dense grid
    assert_sound(mesh)
    assert mesh.euler_number == 2


@pytest.mark.slow
def test_1024_has_no_seams():
    counting, count = counted(lambda x: torus(x) + 0.01 * torch.sin(40 * x).prod(dim=-1))
    mesh = extract(counting, 1024)
    assert_sound(mesh)
    assert mesh.euler_number == 0
    assert count[0] < 0.025 * 1025**3


@pytest.mark.parametrize(
    "sdf",
    [lambda x: torch.ones(len(x)), sphere(0.5, (2.0, 0.0, 0.0)), lambda x: x.norm(dim=-1) + 1e-4],
    ids=["flat", "outside", "almost"],
)
def test_no_surface_is_an_error(sdf):
    with pytest.raises(PmniError, match="no mesh can be extracted"):
        extract(sdf, 64)


def test_diverged_field_is_an_error():
    with pytest.raises(PmniError, match="not finite"):
        extract(lambda x: torch.where(x[:, 0] > 0.5, torch.nan, x.norm(dim=-1) - 0.3), 64)


def test_chunks_make_no_difference():
    whole, parts = extract(torus, 50), extract(torus, 50, chunk=999)
    assert np.array_equal(whole.faces, parts.faces)
    assert np.allclose(whole.vertices, parts.vertices, atol=1e-6)


def test_neighboring_cells_draw_the_same_lines_on_their_common_face():
    """The borders of a cell's triangles on a face depend on that face's corners alone."""
    counts, table = triangle_table()
    borders = {}
    for pattern in range(256):
        triangles = table[pattern, : counts[pattern]]
        sides = {(a, b) for t in triangles for a, b in zip(t, np.roll(t, -1))}
        open_sides = [(a, b) for a, b in sides if (b, a) not in sides]
        for axis in range(3):
            corners = [np.flatnonzero(CORNERS[:, axis] == side) for side in (0, 1)]
            for side in (0, 1):
                on_face = {int(e) for e in range(12) if set(EDGES[e]) <= set(corners[side])}
                lines = {(a, b) for a, b in open_sides if {a, b} <= on_face}
                # Identify edges and signs by their place on the face, the same for both cells that share it.
                place = {e: tuple(np.searchsorted(corners[side], EDGES[e])) for e in on_face}
                key = axis, tuple(bool(pattern >> c & 1) for c in corners[side])
                named = {(place[a], place[b]) for a, b in lines}
                if side:  # seen from the other side
                    named = {(b, a) for a, b in named}
                assert borders.setdefault(key, named) == named
        # All borders lie on faces of the cell.
        assert all(
            any(
                CORNERS[np.r_[EDGES[a], EDGES[b]], x].min() == CORNERS[np.r_[EDGES[a], EDGES[b]], x].max()
                for x in range(3)
            )
            for a, b in open_sides
        )

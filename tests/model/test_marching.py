# SPDX-License-Identifier: Apache-2.0
"""Marching against a plain loop, and tracing against exact ray-sphere intersections."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmni_nerfstudio.model.marching import SurfaceGrid, march, sphere_interval

CENTER = torch.tensor([0.1, -0.05, 0.2])
RADIUS = 0.5


def sphere_sdf(x: torch.Tensor) -> torch.Tensor:
    return (x - CENTER.to(x)).norm(dim=-1) - RADIUS


def lattice(n: int) -> torch.Tensor:
    axis = torch.linspace(-1, 1, n)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def rays(count: int, distance: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rays from random points on a sphere of radius `distance` toward points near the origin."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1) * distance
    targets = torch.randn(count, 3, generator=generator) * 0.4
    return origins, torch.nn.functional.normalize(targets - origins, dim=-1)


def march_by_loops(occupied, origins, directions, nears, fars, step):
    """Reference implementation: one ray and one interval at a time."""
    n = len(occupied)
    found = []
    for r in range(len(origins)):
        m = 0
        while nears[r] + (m + 0.5) * step < fars[r]:
            middle = nears[r] + (m + 0.5) * step
            cell = np.floor((origins[r] + middle * directions[r] + 1) * n / 2).astype(int)
            if (cell >= 0).all() and (cell < n).all() and occupied[tuple(cell)]:
                found.append((r, m))
            m += 1
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.4, 3.0, 15.0]), st.sampled_from([0.05, 0.11]))
def test_march_equals_plain_loops(seed: int, distance: float, step: float):
    # Double precision, so that midpoints on the face of a cell are rounded alike.
    origins, directions = (v.double() for v in rays(12, distance, seed))
    # A dense grid, and one in which most coarse blocks are empty; 20 is not a multiple of BLOCK_CELLS.
    size, share = ((8, 0.3), (20, 0.002))[seed % 2]
    occupied = torch.rand(size, size, size, generator=torch.Generator().manual_seed(seed)) < share
    nears, fars = sphere_interval(origins, directions)
    ray, start, end = march(occupied, origins, directions, nears, fars, step)
    slot = ((start - nears[ray]) / step).round().long()
    expected = march_by_loops(*(v.numpy() for v in (occupied, origins, directions, nears, fars)), step)
    assert list(zip(ray.tolist(), slot.tolist())) == expected
    torch.testing.assert_close(end - start, torch.full_like(start, step))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="nerfacc's kernel needs CUDA")
def test_march_agrees_with_nerfacc():
    origins, directions = (v.cuda() for v in rays(500, 3.0))
    grid = SurfaceGrid(32, sphere_sdf(lattice(33))).cuda()
    nears, fars = sphere_interval(origins, directions)
    ours = march(grid.occupied, origins, directions, nears, fars, grid.cell)
    theirs = grid.march(origins, directions, grid.cell)
    assert abs(len(ours[0]) - len(theirs[0])) <= 0.002 * len(ours[0])  # rounding at the faces of cells


@pytest.mark.parametrize("distance", [0.3, 3.0, 15.0])
def test_sphere_interval(distance: float):
    origins, directions = rays(200, distance)
    nears, fars = sphere_interval(origins, directions)
    crossed = fars > nears
    ends = origins[crossed] + fars[crossed, None] * directions[crossed]
    torch.testing.assert_close(ends.norm(dim=-1), torch.ones(int(crossed.sum())), atol=3e-5, rtol=0)
    assert (nears >= 0).all()
    missed = origins + directions * (-(origins * directions).sum(-1, keepdim=True)).clamp(min=0)
    assert ((missed.norm(dim=-1) > 1 - 1e-4) | crossed).all()


@pytest.mark.parametrize("distance", [1.5, 15.0])
def test_trace_finds_the_sphere(distance: float):
    grid = SurfaceGrid(64, sphere_sdf(lattice(65)))
    origins, directions = rays(400, distance)
    hits = grid.trace(origins, directions)
    to_center = CENTER - origins
    along = (to_center * directions).sum(-1)
    squared = RADIUS**2 - to_center.square().sum(-1) + along**2
    clear = squared.abs() > 0.02  # rays that graze may go either way on a grid
    assert (hits.hit == (squared > 0))[clear].all()
    sure = clear & (squared > 0)
    exact = along[sure] - squared[sure].sqrt()
    assert (hits.t[sure] - exact).abs().max() < 0.15 * grid.cell
    # A ray that misses near the silhouette gets its point of closest approach.
    passing = ~hits.hit & hits.near & (squared < -1e-3)
    closest = origins[passing] + along[passing, None] * directions[passing]
    got = origins[passing] + hits.t[passing, None] * directions[passing]
    assert passing.any() and (sphere_sdf(got) - sphere_sdf(closest)).max() < grid.cell


def test_trace_finds_the_first_of_two_sheets_and_origins_inside():
    shell = sphere_sdf(lattice(65)).abs() - 0.06  # two nested surfaces on each side
    grid = SurfaceGrid(64, shell)
    origin, direction = CENTER + torch.tensor([-5.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    hits = grid.trace(origin[None], direction[None])
    assert hits.hit.item() and abs(hits.t.item() - 4.44) < 0.01
    inside = CENTER + torch.tensor([-0.5, 0.0, 0.0])
    hits = grid.trace(inside[None], direction[None])
    assert hits.hit.item() and hits.t.item() == 0.0


def test_rays_far_from_the_surface_are_not_near():
    grid = SurfaceGrid(32, sphere_sdf(lattice(33)))
    hits = grid.trace(torch.tensor([[5.0, 3.0, 0.0], [5.0, 0.95, 0.0]]), torch.tensor([[-1.0, 0.0, 0.0]] * 2))
    assert not hits.near.any() and not hits.hit.any()


def test_refresh_follows_the_surface():
    grid = SurfaceGrid(48, sphere_sdf(lattice(33)))
    evaluated = []

    def moved(x: torch.Tensor) -> torch.Tensor:
        evaluated.append(len(x))
        return sphere_sdf(x) - 0.03

    grid.refresh(moved, margin=0.02)
    assert sum(evaluated) < 0.5 * 49**3  # near the surface only
    vertices = lattice(49)
    near = moved(vertices).abs() < 0.05
    torch.testing.assert_close(grid.volume[near], moved(vertices)[near])
    # Every cell that the surface crosses is occupied, and distant cells are not.
    corners = moved(vertices).unfold(0, 2, 1).unfold(1, 2, 1).unfold(2, 2, 1).flatten(3)
    crossing = (corners.amin(-1) < 0) & (corners.amax(-1) > 0)
    assert crossing.any() and grid.occupied[crossing].all()
    assert grid.occupied.float().mean() < 0.3


def test_an_empty_grid_is_reset_to_the_hull():
    grid = SurfaceGrid(24, sphere_sdf(lattice(25)))
    before = grid.occupied.clone()
    grid.refresh(lambda x: torch.ones(len(x)), everywhere=True)
    assert grid.occupied.any() and torch.equal(grid.occupied, before)

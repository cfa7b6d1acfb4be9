"""Finer block of the grid field: blending, derivatives, and the step of differences."""

from __future__ import annotations

import pytest
import torch

from pmni_nerfstudio.fields.detail_block import DetailBlock
from pmni_nerfstudio.fields.grid import SdfGrid
from pmni_nerfstudio.fields.sdf_field import PmniFieldConfig
from pmni_nerfstudio.geometry.interpolation import grid_points

CENTER, HALF = torch.tensor([0.2, -0.1, 0.3]), 0.4


def field_with_block() -> SdfGrid:
    """Random distances on the grids and, elsewhere, in the block."""
    torch.manual_seed(0)
    grid = SdfGrid((5, 9), 0.5, detail_vertices=17)
    with torch.no_grad():
        for values in grid.values:
            values.normal_()
    assert grid.detail is not None
    grid.detail.place(CENTER, HALF, torch.randn(17, 17, 17))
    return grid


def test_block_replaces_the_grids_inside_and_ends_at_its_faces() -> None:
    grid = field_with_block()
    block, plain = grid.detail, SdfGrid((5, 9), 0.5)
    assert block is not None
    plain.load_state_dict({name: value for name, value in grid.state_dict().items() if not name.startswith("detail")})
    vertices = CENTER + HALF * grid_points(17)[3:-3, 3:-3, 3:-3].reshape(-1, 3)
    torch.testing.assert_close(grid.sdf(vertices), block.values[3:-3, 3:-3, 3:-3].reshape(-1), atol=1e-4, rtol=0)
    outside = torch.rand(1000, 3) * 2 - 1
    outside = outside[~block.contains(outside)]
    assert torch.equal(grid.sdf(outside), plain.sdf(outside))
    face = CENTER + HALF * torch.tensor([[0.9999, 0.3, 0.1], [0.2, -0.9999, 0.5]])
    torch.testing.assert_close(grid.sdf(face), plain.sdf(face), atol=1e-4, rtol=0)


def test_gradient_is_that_of_the_values() -> None:
    grid = field_with_block().double()
    x = (CENTER + 1.1 * HALF * (2 * torch.rand(400, 3) - 1)).double().requires_grad_(True)
    value, gradient = grid.sdf_and_gradient(x)
    (expected,) = torch.autograd.grad(grid.sdf(x).sum(), x)
    torch.testing.assert_close(value, grid.sdf(x))
    torch.testing.assert_close(gradient, expected)
    step = 1e-6 * torch.eye(3, dtype=torch.double)
    differences = torch.stack([(grid.sdf(x + e) - grid.sdf(x - e)) / 2e-6 for e in step], dim=-1)
    smooth = (differences - gradient).abs().amax(dim=-1) < 1e-4
    assert smooth.double().mean() > 0.99, "only points beside a cell's face may differ"


def test_volume_has_the_fields_values() -> None:
    grid = field_with_block()
    points = grid_points(13)
    torch.testing.assert_close(grid.volume(13), grid.sdf(points.view(-1, 3)).view(13, 13, 13), atol=1e-5, rtol=0)


def test_block_without_a_place_changes_nothing() -> None:
    block = DetailBlock(9)
    assert not block.contains(torch.zeros(5, 3)).any()
    field = PmniFieldConfig(encoding="grid", grid_vertices=(9, 17), detail_vertices=9).setup()
    plain = PmniFieldConfig(encoding="grid", grid_vertices=(9, 17), detail_vertices=0).setup()
    x = torch.rand(50, 3) * 2 - 1
    assert torch.equal(field.sdf(x), plain.sdf(x))
    assert field.mesh_resolution() == plain.mesh_resolution()


@pytest.mark.parametrize(("footprint", "voxels"), [(0.0, 0.5), (0.03, 0.6), (1.0, 5.0)])
def test_differences_are_as_fine_as_block_and_pixel(footprint: float, voxels: float) -> None:
    field = PmniFieldConfig(encoding="grid", grid_vertices=(9, 17), detail_vertices=33, initial_levels=1.0).setup()
    field.detail.place(CENTER, HALF, torch.zeros(33, 33, 33))
    x = torch.stack([CENTER, torch.tensor([-0.9, 0.0, 0.0])])
    step = field.difference_step(x, torch.full((2,), footprint))
    torch.testing.assert_close(step, torch.tensor([voxels * 0.025, 0.125]))


def test_differences_of_their_own_step_at_each_point_are_exact_for_a_plane() -> None:
    field = PmniFieldConfig(encoding="grid", grid_vertices=(9, 17), detail_vertices=33, initial_levels=1.0).setup()
    slope = torch.tensor([0.6, -0.8, 0.1])
    field.fit((grid_points(17) * slope).sum(dim=-1))
    field.detail.place(CENTER, HALF, ((CENTER + HALF * grid_points(33)) * slope).sum(dim=-1))
    x = torch.rand(200, 3) * 1.4 - 0.7
    gradient = field.numerical_gradient(x, field.difference_step(x))
    torch.testing.assert_close(gradient, slope.expand(200, 3), atol=1e-4, rtol=0)

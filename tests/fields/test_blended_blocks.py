"""Blend of blocks: partition of unity, values and gradients, closed meshes across blocks, checkpoints."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from pmni_nerfstudio.fields.blended_blocks import BlendedBlocks, cells_of
from pmni_nerfstudio.fields.trilinear import sample_volume
from pmni_nerfstudio.geometry.interpolation import grid_points
from pmni_nerfstudio.geometry.marching_cubes import extract_mesh

FRAME = torch.from_numpy(Rotation.from_euler("zyx", [30, 20, 10], degrees=True).as_matrix()).float()
HALF = torch.tensor([0.8, 0.25, 0.2])
COUNTS = (4, 1, 1)
RAMP = torch.tensor([0.03, 0.03, 0.03])


def capsule(x: Tensor) -> Tensor:
    """Signed distance of a capsule along the first axis of FRAME with a wave on it."""
    y = x @ FRAME
    along = y[..., 0].clamp(-0.6, 0.6)
    across = torch.stack([y[..., 0] - along, y[..., 1], y[..., 2]], dim=-1).norm(dim=-1)
    return across - 0.2 - 0.02 * torch.sin(9 * y[..., 0])


def blended(sdf=capsule, vertices: int = 97) -> BlendedBlocks:
    """Blocks whose grids hold the values of a signed distance; the grid around them is coarse."""
    field = BlendedBlocks(4, 33)
    low, high = cells_of((-HALF).tolist(), HALF.tolist(), COUNTS)
    field.arrange(FRAME, low, high, RAMP)
    field.fit(sdf(grid_points(33)), 0, torch.Generator())
    for block in range(4):
        center, radius = torch.tensor([-0.6 + 0.4 * block, 0.0, 0.0]), 0.42 + 0.01 * block
        points = (center + radius * grid_points(vertices + 2 * block)) @ FRAME.T
        field.fill(block, center, radius, sdf(points) / radius)
    return field


def near_surface(count: int) -> Tensor:
    points = (torch.rand(count, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1) * HALF
    points = points @ FRAME.T
    return points[capsule(points).abs() < 0.05]


def test_weights_are_a_partition_of_unity() -> None:
    field = blended()
    weights = field.weights(near_surface(20_000))
    assert bool(((weights >= 0) & (weights <= 1)).all())
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(weights.shape[1]), atol=1e-5, rtol=0)
    assert ((weights > 0.01) & (weights < 0.99)).any(dim=0).float().mean() > 0.05, "some points are in two blocks"
    anywhere = field.weights(2 * torch.rand(5000, 3) - 1).sum(dim=0)
    assert float(anywhere.max()) < 1 + 1e-5
    far = torch.tensor([[0.9, -0.9, 0.9]])
    torch.testing.assert_close(field.sdf(far), sample_volume(field.coarse, far))


def test_blocks_that_agree_blend_to_the_same_values() -> None:
    x = near_surface(20_000)
    error = (blended().sdf(x) - capsule(x)).abs().detach()
    assert float(error.max()) < 2e-3
    assert float(error.mean()) < 2e-4


def test_gradient_is_that_of_the_values() -> None:
    field = blended(vertices=17).double()
    x = near_surface(3000).double()
    value, gradient = field.sdf_and_gradient(x)
    torch.testing.assert_close(value, field.sdf(x))
    step = 1e-6 * torch.eye(3, dtype=torch.double)
    with torch.no_grad():
        differences = torch.stack([(field.sdf(x + e) - field.sdf(x - e)) / 2e-6 for e in step], dim=-1)
    smooth = (differences - gradient).abs().amax(dim=-1) < 1e-4
    assert smooth.double().mean() > 0.99, "only points beside a cell's face may differ"


@pytest.mark.parametrize("shift", [0.0, 0.002])
def test_mesh_across_blocks_is_closed_and_that_of_one_grid(shift: float) -> None:
    """Neighboring blocks that differ, as by their training, are joined without a seam."""
    field = blended()
    with torch.no_grad():
        field.grids[1] += shift / float(field.radii[1])
    mesh = extract_mesh(field.sdf, 200, progress=False)
    assert mesh.is_watertight and mesh.body_count == 1
    error = capsule(torch.from_numpy(mesh.vertices).float()).abs()
    voxel = field.active_voxel
    assert float(error.max()) < shift + 0.1 * voxel
    volume = capsule(grid_points(257))
    single = extract_mesh(lambda x: sample_volume(volume, x), 200, progress=False)
    assert abs(mesh.volume / single.volume - 1) < 0.02


def test_checkpoint_restores_grids_of_any_size() -> None:
    field, restored = blended(vertices=9), BlendedBlocks(4, 33)
    restored.load_state_dict(field.state_dict())
    x = near_surface(500)
    assert torch.equal(restored.sdf(x), field.sdf(x))
    assert restored.active_voxel == field.active_voxel < 2 / 15


def test_a_block_without_a_grid_leaves_its_place_to_the_coarse_grid() -> None:
    field = BlendedBlocks(2, 33)
    low, high = cells_of((-HALF).tolist(), HALF.tolist(), (2, 1, 1))
    field.arrange(FRAME, low, high, RAMP)
    field.fill(1, torch.tensor([0.4, 0.0, 0.0]), 0.6, torch.zeros(5, 5, 5))
    first, second = torch.tensor([[-0.3, 0.0, 0.0]]) @ FRAME.T, torch.tensor([[0.3, 0.0, 0.0]]) @ FRAME.T
    assert torch.equal(field.sdf(first), sample_volume(field.coarse, first))
    assert not field.sdf(second).any()

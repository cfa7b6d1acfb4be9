# SPDX-License-Identifier: Apache-2.0
"""Encodings against plain reference implementations, finite differences and PyTorch's own interpolation."""

from __future__ import annotations

import itertools
from typing import Callable

import pytest
import torch
from torch import Tensor

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.fields.encodings import DenseEncoding, TableEncoding
from pmni_nerfstudio.fields.grid import SdfGrid
from pmni_nerfstudio.fields.hash_encoding import HashEncoding, TcnnHashEncoding, level_vertices, tcnn_usable
from pmni_nerfstudio.fields.mlp import EncodedSdf
from pmni_nerfstudio.fields.trilinear import sample_volume
from pmni_nerfstudio.geometry.interpolation import grid_points

HASH = {"levels": 4, "base": 3, "growth": 1.6, "log2_table": 6, "features_per_level": 2}


def points(count: int, seed: int = 0, reach: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, generator=generator, dtype=torch.float64) * 2.0 - 1.0) * reach


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Convert a module to float64 and randomize its parameters, so that no derivative is zero by initialization."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return module


def slow_trilinear(look_up: Callable[[int, int, int], Tensor], vertices: int, x: Tensor) -> Tensor:
    """Trilinear interpolation at one point, corner by corner."""
    place = [(min(max(float(c), -1.0), 1.0) + 1.0) / 2.0 * (vertices - 1) for c in x]
    cell = [min(int(p), vertices - 2) for p in place]
    total = torch.zeros((), dtype=torch.float64)
    for corner in itertools.product((0, 1), repeat=3):
        weight = 1.0
        for axis in range(3):
            along = place[axis] - cell[axis]
            weight *= along if corner[axis] else 1.0 - along
        total = total + weight * look_up(*(cell[axis] + corner[axis] for axis in range(3)))
    return total


def slow_hash(i: int, j: int, k: int, entries: int) -> int:
    """Spatial hash in Python's integers, which do not overflow."""
    return ((i * 1) ^ (j * 2654435761) ^ (k * 805459861)) % entries


def test_sample_volume_is_reference_trilinear_and_clamps_to_the_cube() -> None:
    volume = torch.randn(5, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    corners = torch.tensor([[1.0, 1.0, 1.0], [-1.0, 1.0, 0.0], [0.0, 0.5, -1.0]], dtype=torch.float64)
    x = torch.cat([points(50, reach=1.4), corners])
    expected = torch.stack([slow_trilinear(lambda i, j, k: volume[i, j, k], 5, p) for p in x])
    torch.testing.assert_close(sample_volume(volume, x), expected)
    torch.testing.assert_close(sample_volume(volume, x.view(53, 1, 3)), expected[:, None])


def test_sample_volume_agrees_with_grid_sample() -> None:
    volume = torch.randn(9, 9, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = points(200)
    # grid_sample expects (z, y, x) for a volume indexed (x, y, z).
    theirs = torch.nn.functional.grid_sample(volume[None, None], x.flip(-1).view(1, 1, 1, -1, 3), align_corners=True)
    torch.testing.assert_close(sample_volume(volume, x), theirs.view(-1))


def test_sample_volume_names_the_expected_shape() -> None:
    with pytest.raises(ValueError, match=r"expected \(n, n, n\)"):
        sample_volume(torch.zeros(3, 4, 3), torch.zeros(1, 3))


def test_grid_is_the_sum_of_its_levels() -> None:
    grid = randomize(SdfGrid((3, 5, 8), 0.5))
    assert isinstance(grid, SdfGrid)
    x = points(40)
    for active in (1, 2, 3):
        grid.set_active_levels(active)
        expected = torch.zeros(40, dtype=torch.float64)
        for level in range(active):
            values, n = grid.values[level], grid.vertices[level]
            expected += torch.stack([slow_trilinear(lambda i, j, k, v=values: v[i, j, k], n, p) for p in x])
        torch.testing.assert_close(grid.sdf(x), expected)
        torch.testing.assert_close(grid.volume(6).view(-1), grid.sdf(grid_points(6, x.device, x.dtype).view(-1, 3)))


def test_dense_encoding_is_reference_trilinear() -> None:
    encoding = randomize(DenseEncoding((3, 6), 2))
    assert isinstance(encoding, DenseEncoding)
    x = points(30)
    features = encoding(x.t())
    row = 0
    for n, table in zip(encoding.vertices, encoding.tables):
        for channel in table:
            volume = channel.view(n, n, n)
            expected = torch.stack([slow_trilinear(lambda i, j, k, v=volume: v[i, j, k], n, p) for p in x])
            torch.testing.assert_close(features[row], expected)
            row += 1
    assert row == len(features) == encoding.num_features


def test_hash_encoding_is_dense_where_it_fits_and_hashed_as_in_the_paper_above() -> None:
    encoding = randomize(HashEncoding(**HASH))
    assert isinstance(encoding, HashEncoding)
    assert encoding.vertices == (3, 5, 8, 12)
    assert [table.shape[1] for table in encoding.tables] == [27, 64, 64, 64]
    x = points(30)
    features = encoding(x.t())
    row = 0
    for n, table in zip(encoding.vertices, encoding.tables):
        for channel in table:

            def look_up(i: int, j: int, k: int, n: int = n, channel: Tensor = channel) -> Tensor:
                return channel[(i * n + j) * n + k if n**3 <= 64 else slow_hash(i, j, k, 64)]

            expected = torch.stack([slow_trilinear(look_up, n, p) for p in x])
            torch.testing.assert_close(features[row], expected)
            row += 1


def test_hash_of_large_lattices_does_not_overflow() -> None:
    encoding = HashEncoding(levels=1, base=2048, growth=1.5, log2_table=19, features_per_level=1)
    cell = torch.tensor([[0, 2046], [7, 2046], [2046, 1234]])
    index = encoding.corner_index(cell, 2048)
    for p in range(2):
        i, j, k = cell[:, p].tolist()
        expected = [slow_hash(i + a, j + b, k + c, 2**19) for a, b, c in itertools.product((0, 1), repeat=3)]
        assert index[:, p].tolist() == expected


def test_levels_of_the_default_hash_encoding() -> None:
    vertices = level_vertices(14, 32, 1.32)
    assert vertices[0] == 32 and len(vertices) == 14 and 1100 < vertices[-1] < 1300


@pytest.mark.parametrize(
    "geometry",
    [
        SdfGrid((2, 3), 0.5),
        EncodedSdf(DenseEncoding((2, 3), 1), 4, 0.5),
        EncodedSdf(HashEncoding(levels=2, base=2, growth=1.5, log2_table=4, features_per_level=1), 4, 0.5),
    ],
    ids=["grid", "dense", "hash"],
)
def test_first_and_second_derivatives_in_positions_and_parameters(geometry: SdfGrid | EncodedSdf) -> None:
    randomize(geometry)
    names = [name for name, _ in geometry.named_parameters()]
    # Away from faces of cells, where the derivative is discontinuous.
    x = points(2, seed=5, reach=0.9).requires_grad_(True)
    parameters = [p.detach().clone().requires_grad_(True) for p in geometry.parameters()]

    def value(position: Tensor, *values: Tensor) -> Tensor:
        return _call(geometry, "sdf", dict(zip(names, values)), position)

    def value_and_slope(position: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        return _call(geometry, "sdf_and_gradient", dict(zip(names, values)), position)

    assert torch.autograd.gradcheck(value, (x, *parameters))
    assert torch.autograd.gradgradcheck(value, (x, *parameters))
    assert torch.autograd.gradcheck(value_and_slope, (x, *parameters))
    assert torch.autograd.gradgradcheck(value_and_slope, (x, *parameters))


def _call(geometry: SdfGrid | EncodedSdf, method: str, values: dict[str, Tensor], position: Tensor):  # noqa: ANN202
    """Call a method of the module with other values of its parameters."""

    class Caller(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.geometry = geometry

        def forward(self, x: Tensor):  # noqa: ANN202
            return getattr(self.geometry, method)(x)

    named = {f"geometry.{name}": value for name, value in values.items()}
    return torch.func.functional_call(Caller(), named, (position,))


def test_fast_softplus_equals_pytorchs() -> None:
    geometry = EncodedSdf(DenseEncoding((2,), 1), 16, 0.5).double()
    x = points(64)
    hidden = torch.nn.functional.softplus(geometry.weight[:, :3] @ x.t() + geometry.bias[:, None], beta=100)
    torch.testing.assert_close(geometry.sdf(x), (geometry.weight_out @ hidden)[0] + geometry.bias_out)


@pytest.mark.parametrize("encoding", [DenseEncoding((3, 5, 9), 2), HashEncoding(**HASH)], ids=["dense", "hash"])
def test_locked_levels_get_no_gradient_and_unlocking_is_continuous(encoding: TableEncoding) -> None:
    geometry = EncodedSdf(encoding, 16, 0.5)
    x = points(50).float()
    with_all_levels = geometry.sdf(x)
    encoding.set_active_levels(2)
    torch.testing.assert_close(geometry.sdf(x), with_all_levels)
    geometry.sdf(x).square().sum().backward()
    assert [table.grad is None for table in encoding.tables] == [level >= 2 for level in range(encoding.num_levels)]
    assert all((table.grad != 0).any() for table in list(encoding.tables)[:2] if table.grad is not None)
    locked = 3 + 2 * encoding.features_per_level
    assert geometry.weight.grad is not None and (geometry.weight.grad[:, locked:] == 0).all()


def test_invalid_levels_are_rejected() -> None:
    for vertices in ((), (1, 3), (5, 5), (9, 5)):
        with pytest.raises(PmniError, match="vertices per axis"):
            SdfGrid(vertices, 0.5)
    grid = SdfGrid((3, 5), 0.5)
    for count in (0, 3):
        with pytest.raises(ValueError, match="1 to 2"):
            grid.set_active_levels(count)


@pytest.mark.skipif(tcnn_usable(), reason="tinycudann is usable here")
def test_tinycudann_without_a_gpu_is_an_error_in_one_line() -> None:
    with pytest.raises(PmniError, match="hash-implementation") as error:
        TcnnHashEncoding(**HASH)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not tcnn_usable(), reason="needs tinycudann and a GPU")
def test_tinycudann_has_the_same_shape_and_second_derivatives() -> None:
    geometry = EncodedSdf(TcnnHashEncoding(**HASH), 16, 0.5).cuda()
    with torch.no_grad():
        for parameter in geometry.levels.parameters():
            parameter.uniform_(-0.1, 0.1)
    x = points(64).float().cuda()
    value, slope = geometry.sdf_and_gradient(x)
    step = 1e-3 * torch.eye(3, device=x.device)
    differences = torch.stack([geometry.sdf(x + s) - geometry.sdf(x - s) for s in step], dim=-1) / 2e-3
    assert value.shape == (64,) and (slope - differences).abs().median() < 1e-2
    slope.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in geometry.parameters())

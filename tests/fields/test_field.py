# SPDX-License-Identifier: Apache-2.0
"""The signed distance field on analytic shapes, with every encoding."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.fields.grid import SdfGrid
from pmni_nerfstudio.fields.sdf_field import PmniField, PmniFieldConfig
from pmni_nerfstudio.fields.trilinear import sample_volume
from pmni_nerfstudio.fields.variance import LearnedVariance
from pmni_nerfstudio.geometry.interpolation import grid_points

SMALL: dict[str, Any] = {
    "grid_vertices": (9, 17, 33),
    "dense_vertices": (12, 24, 48),
    "hash_levels": 6,
    "hash_base_vertices": 12,
    "hash_log2_table": 14,
    "hash_implementation": "torch",
}
ENCODINGS = pytest.mark.parametrize("encoding", ["grid", "dense", "hash"])


def make(encoding: str, **changes: Any) -> PmniField:
    torch.manual_seed(0)
    field = PmniFieldConfig(**{**SMALL, "encoding": encoding, **changes}).setup()
    assert isinstance(field, PmniField)
    return field


def torus(x: Tensor) -> Tensor:
    """Signed distance of a torus about z: radii 0.5 and 0.2."""
    ring = torch.stack([x[..., :2].norm(dim=-1) - 0.5, x[..., 2]], dim=-1)
    return ring.norm(dim=-1) - 0.2


def box(x: Tensor) -> Tensor:
    """Signed distance of a box with half edges 0.5, 0.4 and 0.3."""
    over = x.abs() - torch.tensor([0.5, 0.4, 0.3])
    return over.clamp(min=0).norm(dim=-1) + over.amax(dim=-1).clamp(max=0)


def scattered(count: int, seed: int = 0) -> Tensor:
    """Uniformly random points (count, 3) in the cube."""
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


def near(shape: Any, width: float, seed: int = 0) -> Tensor:
    """Random points within `width` of a shape's surface."""
    x = scattered(40000, seed)
    return x[shape(x).abs() < width]


@ENCODINGS
@pytest.mark.parametrize("radius", [0.3, 0.7])
def test_starts_as_a_sphere(encoding: str, radius: float) -> None:
    field = make(encoding, sphere_radius=radius, grid_vertices=(33, 65))
    x = near(lambda p: p.norm(dim=-1) - radius, 0.1)
    for progress in (0.0, 1.0):
        field.set_progress(progress)
        error = (field.sdf(x) - (x.norm(dim=-1) - radius)).abs()
        # grid: linear interpolation of a curved surface in cells of 1/16; network: 64 directions approximate a sphere.
        assert error.mean() < 0.005 and error.max() < 0.015
        cosine = torch.nn.functional.cosine_similarity(field.sdf_and_gradient(x)[1], x)
        assert cosine.min() > 0.97
    vertices = grid_points(field.levels.vertices[0], x.device)
    if encoding == "grid":
        torch.testing.assert_close(field.sdf(vertices), vertices.norm(dim=-1) - radius)


@ENCODINGS
def test_gradients_agree_with_differences(encoding: str) -> None:
    field = make(encoding).double()
    field.fit(torus(grid_points(33)), steps=30)
    x = near(torus, 0.1)[:500].double()
    value, gradient = field.sdf_and_gradient(x)
    torch.testing.assert_close(value, field.sdf(x))
    steps = 1e-6 * torch.eye(3, dtype=torch.float64)
    differences = torch.stack([(field.sdf(x + s) - field.sdf(x - s)) / 2e-6 for s in steps], dim=-1)
    torch.testing.assert_close(gradient, differences, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(field.numerical_gradient(x, 1e-6), differences, atol=1e-6, rtol=1e-6)


@ENCODINGS
def test_gradient_without_a_graph_is_the_same(encoding: str) -> None:
    field = make(encoding)
    x = scattered(20)
    with torch.no_grad():
        value, gradient = field.sdf_and_gradient(x)
    assert not value.requires_grad and not gradient.requires_grad and not x.requires_grad
    torch.testing.assert_close(gradient, field.sdf_and_gradient(x)[1].detach())


@ENCODINGS
def test_positions_receive_gradients_through_the_value_and_the_slope(encoding: str) -> None:
    field = make(encoding)
    x = near(torus, 0.3)[:50].requires_grad_(True)
    field.sdf(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, field.sdf_and_gradient(x)[1].detach())
    x.grad = None
    field.sdf_and_gradient(x)[1].square().sum().backward()
    assert x.grad is not None and (x.grad != 0).any()


@ENCODINGS
def test_any_batch_shape_and_the_exporters_interface(encoding: str) -> None:
    field = make(encoding)
    x = scattered(24)
    expected = field.sdf(x)
    assert field.sdf(x.view(2, 3, 4, 3)).shape == (2, 3, 4)
    assert field.sdf_and_gradient(x.view(4, 6, 3))[1].shape == (4, 6, 3)
    assert field.numerical_gradient(x.view(4, 6, 3), 0.01).shape == (4, 6, 3)
    assert field.sdf(x[:0]).shape == (0,) and field.sdf_and_gradient(x[:0])[1].shape == (0, 3)
    torch.testing.assert_close(field.sdf(x.view(2, 12, 3)).view(-1), expected)
    torch.testing.assert_close(field.forward_geonetwork(x)[:, 0], expected)


def test_outside_the_cube_the_grid_keeps_a_lower_bound_of_the_distance() -> None:
    field = make("grid").double()
    x = scattered(2000).double() * 3.0
    x = x[x.abs().amax(dim=-1) > 1.0]
    value, gradient = field.sdf_and_gradient(x)
    assert ((value > 0) & (value <= x.norm(dim=-1) - 0.5 + 0.05)).all()
    assert (gradient[x.abs() > 1.0] == 0).all()


@pytest.mark.parametrize("shape", [torus, box])
def test_fit_of_the_grid_is_exact_at_the_finest_vertices(shape: Any) -> None:
    field = make("grid")
    target = shape(grid_points(65))
    error = field.fit(target)
    vertices = grid_points(33, target.device)
    field.set_progress(1.0)
    torch.testing.assert_close(field.sdf(vertices), target[::2, ::2, ::2], atol=1e-6, rtol=0)
    torch.testing.assert_close(field.volume(33), target[::2, ::2, ::2], atol=1e-6, rtol=0)
    # With coarse levels only, the field equals the target at their vertices.
    field.set_progress(0.0)
    coarse = grid_points(9, target.device)
    torch.testing.assert_close(field.sdf(coarse), target[::8, ::8, ::8], atol=1e-6, rtol=0)
    x = near(shape, 0.05)
    coarse_error = (field.sdf(x) - sample_volume(target, x)).abs().mean().item()
    assert error == pytest.approx(coarse_error, rel=0.2)  # fit reports the error of the levels unlocked at the time
    field.set_progress(1.0)
    assert (field.sdf(x) - shape(x)).abs().mean() < 0.2 * coarse_error


@pytest.mark.parametrize("encoding", ["dense", "hash"])
@pytest.mark.parametrize("shape", [torus, box])
def test_fit_of_the_networks_finds_the_surface(encoding: str, shape: Any) -> None:
    field = make(encoding)
    target = shape(grid_points(65))
    field.set_progress(1.0)
    error = field.fit(target, steps=150)
    x = near(shape, 0.05, seed=3)
    surface_error = (field.sdf(x) - shape(x)).abs().mean().item()
    assert error < 0.004 and surface_error < 0.004
    far = scattered(5000, seed=4)
    assert (field.sdf(far) - shape(far)).abs().mean() < 0.03
    assert all(parameter.grad is None for parameter in field.parameters())


@ENCODINGS
def test_fit_is_deterministic_and_leaves_the_global_generator_alone(encoding: str) -> None:
    target = torus(grid_points(33))
    x = scattered(100)
    results = []
    for seed in (0, 0, 1):
        field = make(encoding)
        state = torch.get_rng_state()
        error = field.fit(target, steps=10, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        results.append((error, field.sdf(x).detach()))
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])
    assert results[0][0] != results[2][0]


def test_fit_rejects_volumes_without_a_surface() -> None:
    field = make("grid")
    sphere = grid_points(9).norm(dim=-1) - 0.5
    with pytest.raises(ValueError, match="no surface"):
        field.fit(sphere + 2.0)
    with pytest.raises(ValueError, match="finite"):
        field.fit(sphere / 0.0)
    with pytest.raises(ValueError, match=r"\(n, n, n\)"):
        field.fit(sphere[:-1])


@ENCODINGS
def test_levels_unlock_in_equal_steps(encoding: str) -> None:
    field = make(encoding, initial_levels=0.3, unlock_until=0.5)
    levels = field.levels.num_levels
    counts = []
    for percent in range(101):
        field.set_progress(percent / 100)
        counts.append(field.levels.active_levels)
        assert field.active_voxel == pytest.approx(2.0 / (field.levels.vertices[counts[-1] - 1] - 1))
    assert counts[0] == math.ceil(0.3 * levels)
    assert counts[49] == levels - 1 and all(count == levels for count in counts[50:])
    assert all(b - a in (0, 1) for a, b in zip(counts, counts[1:]))
    with pytest.raises(ValueError, match="fraction"):
        field.set_progress(1.1)


def test_locked_levels_of_the_grid_get_no_gradient_and_unlocking_is_continuous() -> None:
    field = make("grid")
    x = scattered(100)
    field.set_progress(0.0)
    before = field.sdf(x)
    before.sum().backward()
    assert isinstance(field.geometry, SdfGrid)
    grads = [level.grad for level in field.geometry.values]
    assert grads[0] is not None and grads[0].sum() == pytest.approx(100.0, rel=1e-4)
    assert grads[1] is None and grads[2] is None
    field.set_progress(1.0)
    torch.testing.assert_close(field.sdf(x), before)
    field.zero_grad()
    field.sdf(x).sum().backward()
    assert all(level.grad is not None for level in field.geometry.values)


@ENCODINGS
def test_checkpoints_contain_values_and_unlocked_levels(encoding: str) -> None:
    field = make(encoding, unlock_until=1.0)
    field.fit(torus(grid_points(33)), steps=5)
    field.set_progress(0.6)
    field.set_min_inv_s(123.0)
    file = io.BytesIO()
    torch.save(field.state_dict(), file)
    file.seek(0)
    other = make(encoding, unlock_until=1.0)
    assert other.levels.active_levels != field.levels.active_levels
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.levels.active_levels == field.levels.active_levels
    x = scattered(100)
    assert torch.equal(other.sdf(x), field.sdf(x))
    assert other.inv_s().item() == pytest.approx(123.0)


@ENCODINGS
def test_volume_is_the_field_on_a_grid(encoding: str) -> None:
    field = make(encoding)
    field.set_progress(1.0)
    field.fit(box(grid_points(33)), steps=5)
    volume = field.volume(20)
    assert not volume.requires_grad
    torch.testing.assert_close(volume, field.sdf(grid_points(20, volume.device)).detach(), atol=1e-6, rtol=0)
    if encoding == "grid":  # nested levels: the volume at the finest resolution is exact everywhere
        x = scattered(500)
        torch.testing.assert_close(sample_volume(field.volume(33), x), field.sdf(x).detach(), atol=1e-5, rtol=0)


@ENCODINGS
def test_parameter_groups_hold_every_parameter_once(encoding: str) -> None:
    field = make(encoding)
    groups = field.param_groups()
    assert set(groups) == {"sdf", "variance"}
    listed = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(listed) == sorted(id(parameter) for parameter in field.parameters())


@ENCODINGS
def test_gradient_descent_moves_the_surface(encoding: str) -> None:
    field = make(encoding)
    x = near(lambda p: p.norm(dim=-1) - 0.4, 0.1)
    before = (field.sdf(x) - (x.norm(dim=-1) - 0.4)).abs().mean().item()
    optimizer = torch.optim.Adam(field.param_groups()["sdf"], lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        (field.sdf(x) - (x.norm(dim=-1) - 0.4)).abs().mean().backward()
        optimizer.step()
    assert (field.sdf(x) - (x.norm(dim=-1) - 0.4)).abs().mean().item() < 0.2 * before


def test_variance_is_learned_above_its_lower_bound() -> None:
    variance = LearnedVariance(20.0)
    assert variance.inv_s().item() == pytest.approx(20.0)
    variance.inv_s().backward()
    assert variance.variance.grad is not None and variance.variance.grad.item() == pytest.approx(200.0)
    variance.set_min_inv_s(400.0)
    assert variance.inv_s().item() == pytest.approx(400.0)
    variance.variance.grad = None
    variance.inv_s().backward()
    assert variance.variance.grad is not None and variance.variance.grad.item() == 0.0


def test_auto_is_resolved_when_the_config_is_created() -> None:
    config = PmniFieldConfig()
    assert config.encoding == ("hash" if torch.cuda.is_available() else "grid")
    assert config.hash_implementation in ("tcnn", "torch")
    again = yaml.load(yaml.dump(PmniFieldConfig(encoding="dense")), Loader=yaml.Loader)
    assert again == PmniFieldConfig(encoding="dense")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sphere_radius", 1.5),
        ("initial_levels", 0.0),
        ("unlock_until", 1.5),
        ("initial_inv_s", 0.0),
        ("hash_levels", 0),
    ],
)
def test_a_number_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(PmniError, match=name) as error:
        make("grid", **{name: value})
    assert "\n" not in str(error.value)


def test_the_log_names_the_hash_implementation(capsys: pytest.CaptureFixture[str]) -> None:
    make("hash")
    assert "PyTorch" in capsys.readouterr().out
    make("grid")
    assert capsys.readouterr().out == ""


def test_density_is_not_available() -> None:
    with pytest.raises(NotImplementedError, match="signed distances"):
        make("grid").density_fn(scattered(3))

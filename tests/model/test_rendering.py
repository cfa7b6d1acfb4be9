# SPDX-License-Identifier: Apache-2.0
"""Rendering functions against closed forms: planes, linear fields, a sphere."""

import pytest
import torch
from torch.autograd import gradcheck

from pmni_nerfstudio.model.marching import SurfaceHits
from pmni_nerfstudio.model.rendering import along_rays, directional_gradients, neus_weights, patch_planes


def patch_positions(k: int, samples: int, depth: float = 15.0, pixel: float = 1e-3) -> torch.Tensor:
    """Samples (1, k, k, s, 3) of a patch on planes z = const, for a camera at the origin that looks along z."""
    side = (torch.arange(k, dtype=torch.float64) - k // 2) * pixel
    y, x = torch.meshgrid(side + 0.02, side - 0.03, indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    z = depth + 0.01 * torch.arange(samples, dtype=torch.float64)
    return (rays[:, :, None] * z[:, None])[None]


@pytest.mark.parametrize("k", [2, 3, 5])
def test_directional_gradients_are_exact_for_linear_fields(k: int):
    gradient = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64)
    positions = patch_positions(k, 4)
    got = directional_gradients(positions @ gradient + 2.0, positions)
    torch.testing.assert_close(got, gradient.expand_as(got))


def test_directional_gradients_of_a_sphere_converge_with_the_pixel():
    center = torch.tensor([-0.45, 0.3, 15.6], dtype=torch.float64)
    errors = []
    for pixel in (2e-3, 1e-3):
        positions = patch_positions(3, 5, pixel=pixel)
        offset = positions - center
        got = directional_gradients(offset.norm(dim=-1), positions)
        exact = torch.nn.functional.normalize(offset, dim=-1)
        errors.append((got - exact)[:, 1, 1, 1:-1].norm(dim=-1).max().item())  # central differences: second order
    assert errors[1] < 0.35 * errors[0] or errors[1] < 1e-5


def test_directional_gradients_pass_gradients_to_values_and_positions():
    positions = patch_positions(3, 3).requires_grad_()
    values = torch.randn(1, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    # Scaled to magnitudes that finite differences resolve.
    assert gradcheck(
        lambda v, p: 1e-3 * directional_gradients(v, p), (values, positions), eps=1e-8, atol=1e-2, rtol=1e-2
    )


def test_weights_are_the_decrease_of_the_logistic_function():
    t = torch.linspace(-0.5, 0.5, 400, dtype=torch.float64)
    inv_s = torch.tensor(40.0, dtype=torch.float64)
    sdf = -0.7 * t  # a plane met at an angle, at t = 0
    weights = neus_weights(sdf, inv_s)
    phi = torch.sigmoid(sdf * inv_s)
    torch.testing.assert_close(weights.sum(), 1 - phi[-1])
    torch.testing.assert_close(weights[1:], phi[:-1] - phi[1:])
    assert abs((weights * t).sum() / weights.sum()) < 2e-3  # the depth is not biased


def test_weights_stay_zero_behind_the_surface():
    sdf = torch.tensor([0.3, 0.1, -0.2, -0.1, 0.3, -0.3])  # into the object, out of it, into another
    weights = neus_weights(sdf, torch.tensor(100.0))
    assert weights[2] > 0.99 and weights[3:].sum() < 1e-6 and torch.isfinite(weights).all()
    deep = neus_weights(torch.tensor([0.01, -5.0, -9.0, -5.0]), torch.tensor(1e4))
    assert torch.isfinite(deep).all() and abs(deep.sum() - 1) < 1e-5


def test_weights_have_finite_gradients_everywhere():
    sdf = torch.tensor([5.0, 1e-3, -1e-3, -5.0, 5.0], requires_grad=True)
    neus_weights(sdf, torch.tensor(4000.0)).square().sum().backward()
    assert torch.isfinite(sdf.grad).all()


def test_along_rays_divides_by_the_accumulation():
    weights = torch.tensor([[0.2, 0.2], [0.0, 0.0]])
    values = torch.tensor([[[1.0], [3.0]], [[5.0], [5.0]]])
    mean, accumulation = along_rays(weights, values)
    torch.testing.assert_close(mean, torch.tensor([[2.0], [0.0]]))
    torch.testing.assert_close(accumulation, torch.tensor([0.4, 0.0]))


def hits_of(t: list[float], hit: list[bool], near: list[bool]) -> SurfaceHits:
    return SurfaceHits(t=torch.tensor(t), hit=torch.tensor(hit), near=torch.tensor(near), t_min_sdf=torch.tensor(t))


def test_planes_span_the_patch_and_exclude_another_sheet():
    # Patch 0: eight rays on a slope and one on a body far behind. Patch 1: far from the surface. Patch 2: near misses.
    slope = [10.0, 10.01, 10.02, 10.03, 10.04, 10.05, 10.06, 10.07]
    hits = hits_of(
        slope + [11.0] + [0.0] * 9 + [9.0] * 9,
        [True] * 9 + [False] * 18,
        [True] * 9 + [False] * 9 + [True] * 9,
    )
    norms = torch.ones(3, 9)
    planes = patch_planes(hits, norms, 6, 0.02, torch.full((3,), 0.3), jitter=False)
    assert planes.hits_surface.tolist() == [True, False, False]
    assert planes.valid[0].tolist() == [True] * 8 + [False]
    assert planes.valid[1:].all()
    torch.testing.assert_close(planes.z[0, [0, -1]], torch.tensor([9.98, 10.09]))
    assert planes.z.isfinite().all()


def test_planes_are_spaced_in_depth_not_in_distance():
    norms = torch.full((1, 9), 1.25)
    planes = patch_planes(hits_of([10.0] * 9, [True] * 9, [True] * 9), norms, 3, 0.1, torch.ones(1), jitter=False)
    torch.testing.assert_close(planes.z[0], torch.tensor([7.9, 8.0, 8.1]))


def test_jitter_moves_planes_by_at_most_half_a_spacing():
    torch.manual_seed(0)
    hits = hits_of([10.0] * 900, [True] * 900, [True] * 900)
    planes = patch_planes(hits, torch.ones(100, 9), 5, 0.2, torch.ones(100), jitter=True)
    still = torch.tensor([9.8, 9.9, 10.0, 10.1, 10.2])
    shift = planes.z - still
    assert shift.abs().max() <= 0.05 + 1e-5 and shift.std(dim=0).min() > 0.02
    assert (shift.std(dim=1) < 1e-5).all()  # a patch's planes move together

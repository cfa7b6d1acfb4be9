# SPDX-License-Identifier: Apache-2.0
"""Network with one hidden layer that maps positions encoded by `dense` or `hash` to signed distances."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pmni_nerfstudio.fields.encodings import LevelEncoding
from pmni_nerfstudio.fields.trilinear import sample_volume
from pmni_nerfstudio.fields.warm_start import SurfaceBand
from pmni_nerfstudio.geometry.interpolation import grid_points

SOFTPLUS_BETA = 100.0
"""Sharpness of the hidden layer's softplus."""

_CHUNK_POINTS = 2**17
_FIT_POINTS = 4096
_FIT_LEARNING_RATE = 1e-2


class _Softplus(torch.autograd.Function):
    """Softplus log(1 + exp(beta h)) / beta with a large beta: close to a ReLU, but twice differentiable.

    Two to three times as fast on a CPU as `F.softplus`, whose log1p is not vectorized. Exact to rounding, since only
    numbers that are not positive are exponentiated.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        tail = hidden.abs().mul_(-SOFTPLUS_BETA).exp_().add_(1.0).log_()
        return tail.mul_(1.0 / SOFTPLUS_BETA).add_(hidden.clamp(min=0.0))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        (hidden,) = ctx.saved_tensors
        return grad_outputs[0] * torch.sigmoid(SOFTPLUS_BETA * hidden)


class EncodedSdf(nn.Module):
    """Signed distance f(x) = w . softplus(W [x, features(x)] + b) + c, with the features of the unlocked levels.

    It is initialized to a sphere without training: for unit vectors u_i spread evenly over the sphere the mean of
    relu(u_i . x) is |x| / 4. Hence the rows of W are u_i, w = 4 / hidden_dim, c = -radius, and the features are zero.

    Args:
        levels: the encoding.
        hidden_dim: width of the hidden layer.
        radius: radius of the initial sphere, world units.
    """

    def __init__(self, levels: LevelEncoding, hidden_dim: int, radius: float) -> None:
        super().__init__()
        self.levels = levels
        self.weight = nn.Parameter(torch.randn(hidden_dim, 3 + levels.num_features) * math.sqrt(2.0 / hidden_dim))
        self.bias = nn.Parameter(torch.zeros(hidden_dim))
        self.weight_out = nn.Parameter(torch.full((1, hidden_dim), 4.0 / hidden_dim))
        self.bias_out = nn.Parameter(torch.tensor(-radius))
        with torch.no_grad():
            self.weight[:, :3] = _spread_directions(hidden_dim)

    def sdf(self, x: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        """Signed distances, world units."""
        x_t = x.t().contiguous()
        inputs = torch.cat([x_t, self.levels(x_t)])
        # Weights of locked levels are left out of the product.
        hidden = torch.addmm(self.bias[:, None], self.weight[:, : inputs.shape[0]], inputs)
        return (self.weight_out @ _Softplus.apply(hidden))[0] + self.bias_out

    def sdf_and_gradient(self, x: Float[Tensor, "p 3"]) -> tuple[Float[Tensor, " p"], Float[Tensor, "p 3"]]:
        """Signed distances and their gradients; differentiable if gradients are enabled."""
        record = torch.is_grad_enabled()
        with torch.enable_grad():
            position = x if x.requires_grad and record else x.detach().requires_grad_(True)
            value = self.sdf(position)
            (gradient,) = torch.autograd.grad(value.sum(), position, create_graph=record)
        return (value, gradient) if record else (value.detach(), gradient)

    @torch.no_grad()
    def volume(self, n: int) -> Float[Tensor, "n n n"]:
        """The field at the vertices of an n^3 grid over [-1, 1]^3, 'ij' = x, y, z; no gradients."""
        points = grid_points(n, self.weight.device, self.weight.dtype).reshape(-1, 3)
        return torch.cat([self.sdf(chunk) for chunk in points.split(_CHUNK_POINTS)]).view(n, n, n)

    def fit(self, volume: Float[Tensor, "n n n"], steps: int, generator: torch.Generator) -> None:
        """Fit the unlocked levels to a volume of signed distances by Adam.

        Three quarters of each step's points lie near the surface, the others anywhere in the cube.
        """
        band = SurfaceBand(volume)
        optimizer = torch.optim.Adam(self.parameters(), lr=_FIT_LEARNING_RATE)
        # The learning rate decays to 1%, so that the last steps converge.
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1.0 / max(steps, 1)))
        with torch.enable_grad():
            for _ in range(steps):
                near = band.draw(3 * _FIT_POINTS // 4, generator)
                anywhere = torch.rand(_FIT_POINTS // 4, 3, generator=generator).to(near) * 2.0 - 1.0
                points = torch.cat([near, anywhere])
                loss = (self.sdf(points) - sample_volume(volume, points)).abs().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
        optimizer.zero_grad()


def _spread_directions(count: int) -> Float[Tensor, "n 3"]:
    """Unit vectors spread evenly over the sphere: a Fibonacci lattice."""
    index = torch.arange(count) + 0.5
    height = 1.0 - 2.0 * index / count
    angle = index * (math.pi * (1.0 + math.sqrt(5.0)))
    flat = (1.0 - height * height).sqrt()
    return torch.stack([flat * angle.cos(), flat * angle.sin(), height], dim=-1)

# SPDX-License-Identifier: Apache-2.0
"""Learned variance of NeuS' logistic density, with a lower bound of the sharpness that a schedule can raise."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LearnedVariance(nn.Module):
    """Sharpness of the surface, inv_s = exp(10 v) with v learned (NeuS, Wang et al., NeurIPS 2021).

    Args:
        inv_s: initial value, positive; 1 / inv_s is the standard deviation of the density, world units.
    """

    floor: Tensor

    def __init__(self, inv_s: float) -> None:
        super().__init__()
        # With NeuS' factor 10 the same learning rate suits this parameter and the network's weights.
        self.variance = nn.Parameter(torch.tensor(math.log(inv_s) / 10.0))
        self.register_buffer("floor", torch.tensor(0.0))

    def set_min_inv_s(self, value: float) -> None:
        """Set the lower bound of `inv_s`. While it is in effect, the parameter gets no gradient."""
        self.floor.fill_(value)

    def inv_s(self) -> Float[Tensor, ""]:
        """Learned `inv_s`, at least its lower bound and at most 1e6, where alphas in float32 are step functions."""
        return torch.maximum(torch.exp(10.0 * self.variance).clamp(max=1e6), self.floor)

# SPDX-License-Identifier: Apache-2.0
"""The one learnt number of NeuS' logistic density, with a floor that a schedule may raise."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LearntVariance(nn.Module):
    """The sharpness of the surface: inv_s = exp(10 v), v learnt (NeuS, Wang et al., NeurIPS 2021).

    Args:
        inv_s: where to start, positive; 1 / inv_s is the standard deviation of the density, world units.
    """

    floor: Tensor

    def __init__(self, inv_s: float) -> None:
        super().__init__()
        # The factor 10, NeuS' own, lets one learning rate suit this number and the network's weights.
        self.variance = nn.Parameter(torch.tensor(math.log(inv_s) / 10.0))
        self.register_buffer("floor", torch.tensor(0.0))

    def set_min_inv_s(self, value: float) -> None:
        """Let inv_s fall no lower than this from now on. While the floor holds, nothing is learnt."""
        self.floor.fill_(value)

    def inv_s(self) -> Float[Tensor, ""]:
        """The learnt inv_s or the floor, whichever is greater; at most 1e6, where float32 alphas are steps."""
        return torch.maximum(torch.exp(10.0 * self.variance).clamp(max=1e6), self.floor)

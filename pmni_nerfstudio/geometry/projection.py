# SPDX-License-Identifier: Apache-2.0
"""Differentiable projection of world points into cameras, and back, for losses that compare views."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pmni_nerfstudio.geometry.cameras import project

MIN_DEPTH = 1e-6
"""Smallest depth that pixels are computed for, in world units."""


def project_world(
    points: Float[Tensor, "q 3"], w2c: Float[Tensor, "q 3 4"], K: Float[Tensor, "q 3 3"]
) -> tuple[Float[Tensor, "q 2"], Float[Tensor, "q"]]:
    """Project world points, each into a camera of its own; differentiable.

    Args:
        points: world coordinates.
        w2c: world-to-camera.
        K: intrinsics in pixels.

    Returns:
        pixels: (x, y); finite, with finite gradients, but meaningless where the depth is not positive.
        depth: along the optical axis.
    """
    camera = (w2c[..., :3] * points[:, None, :]).sum(dim=-1) + w2c[..., 3]
    depth = camera[:, 2]
    safe = torch.where(depth > MIN_DEPTH, depth, torch.ones_like(depth))
    return project(torch.cat([camera[:, :2], safe[:, None]], dim=-1), K), depth


def unproject(
    pixels: Float[Tensor, "q 2"],
    depth: Float[Tensor, "q"],
    w2c: Float[Tensor, "q 3 4"],
    K: Float[Tensor, "q 3 3"],
) -> Float[Tensor, "q 3"]:
    """World points at given depths along the optical axis behind pixels: the inverse of `project_world`."""
    y = (pixels[:, 1] - K[:, 1, 2]) / K[:, 1, 1]
    x = (pixels[:, 0] - K[:, 0, 2] - K[:, 0, 1] * y) / K[:, 0, 0]
    camera = torch.stack([x, y, torch.ones_like(x)], dim=-1) * depth[:, None]
    return (w2c[..., :3] * (camera - w2c[..., 3])[..., None]).sum(dim=-2)

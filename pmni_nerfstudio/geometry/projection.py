# SPDX-License-Identifier: Apache-2.0
"""Points to pixels, pixels to points, and looking maps up in place, for losses that compare views."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

LEAST_DEPTH = 1e-6
"""World units."""


def project(
    points: Float[Tensor, "q 3"], w2c: Float[Tensor, "q 3 4"], K: Float[Tensor, "q 3 3"]
) -> tuple[Float[Tensor, "q 2"], Float[Tensor, "q"]]:
    """Where points appear in their cameras.

    Args:
        points: world.
        w2c: world-to-camera, OpenCV axes, one for each point.
        K: intrinsics in pixels, last row 0 0 1.

    Returns:
        pixels: (x, y) with pixel centres at integers, as K counts them. Meaningless where depth isn't positive.
        depth: along the optical axis.
    """
    camera = (w2c[..., :3] * points[:, None, :]).sum(dim=-1) + w2c[..., 3]
    image, depth = (K * camera[:, None, :]).sum(dim=-1), camera[:, 2]
    # So that points beside or behind the camera, which callers leave out, have finite gradients.
    return image[:, :2] / torch.where(depth > LEAST_DEPTH, depth, torch.ones_like(depth))[:, None], depth


def unproject(
    pixels: Float[Tensor, "q 2"],
    depth: Float[Tensor, "q"],
    w2c: Float[Tensor, "q 3 4"],
    K: Float[Tensor, "q 3 3"],
) -> Float[Tensor, "q 3"]:
    """World points at a depth along the optical axis behind pixels: the inverse of `project`."""
    y = (pixels[:, 1] - K[:, 1, 2]) / K[:, 1, 1]
    x = (pixels[:, 0] - K[:, 0, 2] - K[:, 0, 1] * y) / K[:, 0, 0]
    camera = torch.stack([x, y, torch.ones_like(x)], dim=-1) * depth[:, None]
    return (w2c[..., :3] * (camera - w2c[..., 3])[..., None]).sum(dim=-2)


def sample_maps(
    maps: Shaped[Tensor, "v h w c"], views: Int[Tensor, "q"], pixels: Float[Tensor, "q 2"]
) -> tuple[Float[Tensor, "q c"], Bool[Tensor, "q"]]:
    """Bilinear look-up that reads four pixels a query and leaves the maps where and as they are.

    `grid_sample` wants all maps in single precision, channels first, and one grid per view; ours stay in half
    precision on the CPU, shared with the scene.

    Args:
        maps: zero where a pixel holds nothing (off the mask); any floating type, any device.
        views: map of each query.
        pixels: (x, y), pixel centres at integers; the result's gradient goes to them.

    Returns:
        values: in the pixels' type.
        covered: all four pixels lie in the frame and hold something; elsewhere values mean nothing.
    """
    _, height, width, channels = maps.shape
    corner = pixels.detach().floor()
    inside = ((corner >= 0) & (corner < corner.new_tensor([width - 1, height - 1]))).all(dim=-1)
    # Out of the frame: some pixel of it, and the fraction of none, so that no value or gradient overflows.
    corner = torch.where(inside[:, None], corner, torch.zeros_like(corner))
    x, y = torch.where(inside[:, None], pixels - corner, torch.zeros_like(pixels)).unbind(dim=-1)
    column, row = corner.long().unbind(dim=-1)
    first = (views.to(corner.device) * height + row) * width + column
    index = torch.stack([first, first + 1, first + width, first + width + 1], dim=-1)
    values = maps.reshape(-1, channels)[index.to(maps.device)].to(pixels)
    weights = torch.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], dim=-1)
    covered = inside & values.ne(0).any(dim=-1).all(dim=-1)
    return (values * weights[..., None]).sum(dim=-2), covered

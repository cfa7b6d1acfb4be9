# SPDX-License-Identifier: Apache-2.0
"""Lookups between pixels and in volumes: bilinear and trilinear, exact in the position, with NumPy arrays in and out.

(OpenCV's remap rounds positions to a 32nd of a pixel, which is what registration has to find.)
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


def lookup(image: Float[Tensor, "c h w"], pixels: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p c"]:
    """Bilinear values at pixels (x, y; centres at integers); beyond the frame those of its edge."""
    height, width = image.shape[1:]
    at = torch.from_numpy(2 * pixels / np.array([width - 1, height - 1]) - 1).to(image)
    return F.grid_sample(image[None], at[None, None], align_corners=True, padding_mode="border")[0, :, 0].T.numpy()


def nearest(pixels: Float[np.ndarray, "p 2"], width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of the nearest pixel, clamped into the frame, and whether it was inside."""
    rounded = np.rint(np.nan_to_num(pixels, nan=-1, posinf=-1, neginf=-1)).astype(np.int64)
    inside = (rounded >= 0).all(axis=1) & (rounded[:, 0] < width) & (rounded[:, 1] < height)
    return rounded[:, 1].clip(0, height - 1), rounded[:, 0].clip(0, width - 1), inside


def lookup_volume(volume: Float[Tensor, "c n n n"], points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p c"]:
    """Trilinear values at points of [-1, 1]^3 ('ij' = x, y, z, vertices on the faces); beyond it those of its faces."""
    at = torch.from_numpy(np.ascontiguousarray(points[:, ::-1])).to(volume)
    return F.grid_sample(volume[None], at[None, None, None], align_corners=True, padding_mode="border")[
        0, :, 0, 0
    ].T.numpy()


def value_and_gradient(sdf: Float[np.ndarray, "n n n"]) -> Float[Tensor, "4 n n n"]:
    """A volume over [-1, 1]^3 and its central differences, float32, for `lookup_volume`."""
    volume = torch.from_numpy(np.ascontiguousarray(sdf, dtype=np.float32))
    h = 2.0 / (len(sdf) - 1)
    padded = F.pad(volume[None, None], (1, 1, 1, 1, 1, 1), mode="replicate")[0, 0]
    inner = slice(1, -1)
    return torch.stack(
        [
            volume,
            (padded[2:, inner, inner] - padded[:-2, inner, inner]) / (2 * h),
            (padded[inner, 2:, inner] - padded[inner, :-2, inner]) / (2 * h),
            (padded[inner, inner, 2:] - padded[inner, inner, :-2]) / (2 * h),
        ]
    )


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

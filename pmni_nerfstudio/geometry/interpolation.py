# SPDX-License-Identifier: Apache-2.0
"""Bilinear lookups in images and trilinear lookups in volumes, exact in the position.

OpenCV's `remap` is no alternative: it rounds positions to 1/32 pixel, the accuracy that registration needs.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


def lookup(image: Float[Tensor, "c h w"], pixels: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p c"]:
    """Bilinear values of an image at pixels (x, y), centers at integers; the border's values outside the image."""
    height, width = image.shape[1:]
    at = torch.from_numpy(2 * pixels / np.array([width - 1, height - 1]) - 1).to(image)
    return F.grid_sample(image[None], at[None, None], align_corners=True, padding_mode="border")[0, :, 0].T.numpy()


def nearest(pixels: Float[np.ndarray, "p 2"], width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of the nearest pixel, clamped to the image, and whether it lies inside the image."""
    rounded = np.rint(np.nan_to_num(pixels, nan=-1, posinf=-1, neginf=-1)).astype(np.int64)
    inside = (rounded >= 0).all(axis=1) & (rounded[:, 0] < width) & (rounded[:, 1] < height)
    return rounded[:, 1].clip(0, height - 1), rounded[:, 0].clip(0, width - 1), inside


def lookup_volume(volume: Float[Tensor, "c n n n"], points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p c"]:
    """Trilinear values of a volume over [-1, 1]^3 at points; the nearest face's values outside the cube.

    Args:
        volume: channels first, 'ij' = x, y, z; the outermost vertices lie on the faces of the cube.
        points: positions.
    """
    at = torch.from_numpy(points[:, ::-1].copy()).to(volume)
    values = F.grid_sample(volume[None], at[None, None, None], align_corners=True, padding_mode="border")
    return values[0, :, 0, 0].T.numpy()


def grid_points(
    resolution: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n n n 3"]:
    """Vertices of a regular grid over [-1, 1]^3, 'ij' = x, y, z."""
    axis = torch.linspace(-1.0, 1.0, resolution, device=device, dtype=dtype)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def value_and_gradient(sdf: Float[np.ndarray, "n n n"]) -> Float[Tensor, "4 n n n"]:
    """A volume over [-1, 1]^3 and its gradient by central differences, as float32 channels for `lookup_volume`."""
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
    """Bilinear lookup in many maps, each query in a map of its own; differentiable in the positions.

    Only the four pixels of each query are read. `grid_sample` would need all maps in single precision, channels
    first, and one grid per map; here the maps may stay in half precision on the CPU, shared with the scene.

    Args:
        maps: all zero at pixels without data (off the mask); any floating type, any device.
        views: index of the map of each query.
        pixels: (x, y), pixel centers at integers.

    Returns:
        values: in the type of `pixels`; meaningless where not covered.
        covered: whether all four pixels lie inside the image and hold data.
    """
    _, height, width, channels = maps.shape
    corner = pixels.detach().floor()
    inside = ((corner >= 0) & (corner < corner.new_tensor([width - 1, height - 1]))).all(dim=-1)
    # Outside the image read the first pixel with weight 1, so that no value or gradient overflows.
    corner = torch.where(inside[:, None], corner, torch.zeros_like(corner))
    x, y = torch.where(inside[:, None], pixels - corner, torch.zeros_like(pixels)).unbind(dim=-1)
    column, row = corner.long().unbind(dim=-1)
    first = (views.to(corner.device) * height + row) * width + column
    index = torch.stack([first, first + 1, first + width, first + width + 1], dim=-1)
    values = maps.reshape(-1, channels)[index.to(maps.device)].to(pixels)
    weights = torch.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], dim=-1)
    covered = inside & values.ne(0).any(dim=-1).all(dim=-1)
    return (values * weights[..., None]).sum(dim=-2), covered

# SPDX-License-Identifier: Apache-2.0
"""Lookups between pixels and in volumes: bilinear and trilinear, exact in the position, with NumPy arrays in and out.

(OpenCV's remap rounds positions to a 32nd of a pixel, which is what registration has to find.)
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def project(K: Float[np.ndarray, "3 3"], camera: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 2"]:
    """Pixels (x, y; centres at integers) of points in camera axes."""
    z = camera[:, 2]
    x = (K[0, 0] * camera[:, 0] + K[0, 1] * camera[:, 1]) / z + K[0, 2]
    return np.stack([x, K[1, 1] * camera[:, 1] / z + K[1, 2]], axis=1)


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

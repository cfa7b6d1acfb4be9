# SPDX-License-Identifier: Apache-2.0
"""Convergence criterion: change of the rendered normals at a fixed set of pixels, and of the poses, between checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from pmni_nerfstudio.fields.sdf_field import PmniField
from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.geometry.transforms import flip_y_and_z
from pmni_nerfstudio.model.marching import SurfaceGrid

NUM_PIXELS = 4096
"""Number of pixels to compare: their mean is accurate to a few percent, and a check costs less than a training step."""


@dataclass(frozen=True)
class Change:
    """Mean change since the previous check."""

    normals_deg: float
    """Rotation of the surface normals in degrees, over the pixels that see the surface both times."""
    poses_deg: float
    """Rotation of the views in degrees."""

    def within(self, normals_deg: float, poses_deg: float) -> bool:
        """Whether both changes are below their limits."""
        return self.normals_deg < normals_deg and self.poses_deg < poses_deg

    def __str__(self) -> str:
        return f"normals change by {self.normals_deg:.2f} deg and poses by {self.poses_deg:.4f} deg between checks"


class ConvergenceMonitor:
    """Measures the change of surface and poses between checks.

    Args:
        masks: Masks of the views, from which the pixels are drawn.
        K: Intrinsics in pixels.
    """

    def __init__(self, masks: Bool[np.ndarray, "n h w"], K: Float[np.ndarray, "n 3 3"]) -> None:
        pixels = draw_mask_pixels(masks, NUM_PIXELS, np.random.default_rng(0))
        directions = [pixel_directions(*of_view) for of_view in zip(K, pixels, strict=True)]
        self._view = torch.arange(len(K)).repeat_interleave(pixels.shape[1])
        self._opengl_rays = torch.from_numpy(flip_y_and_z(np.concatenate(directions))).float()
        self.previous: Optional[Tuple[Tensor, ...]] = None
        """Normals, whether each pixel sees the surface, and rotations of the views, at the previous check."""

    @torch.no_grad()
    def check(self, field: PmniField, grid: SurfaceGrid, c2w: Float[Tensor, "n 3 4"]) -> Optional[Change]:
        """Measure the change since the previous call.

        Args:
            field: Signed distance field.
            grid: Occupancy grid that caches the field.
            c2w: Camera-to-world poses, OpenGL axes.

        Returns:
            The change; None at the first call.
        """
        pose = c2w[self._view.to(c2w.device)]
        directions = functional.normalize((pose[:, :, :3] @ self._opengl_rays.to(c2w)[..., None])[..., 0], dim=-1)
        hits = grid.trace(pose[:, :, 3], directions)
        points = pose[:, :, 3] + hits.t[:, None] * directions
        normals = functional.normalize(field.numerical_gradient(points, field.active_voxel), dim=-1)
        rotations = c2w[:, :, :3].double()
        previous, self.previous = self.previous, (normals, hits.hit, rotations)
        if previous is None:
            return None
        both = hits.hit & previous[1]
        chord = (normals - previous[0]).norm(dim=-1)[both]
        half_sine = (rotations - previous[2]).square().sum(dim=(1, 2)).div(8).sqrt()  # sine of half the rotation angle
        return Change(
            normals_deg=math.degrees(float(2 * torch.arcsin((chord / 2).clamp(max=1)).mean())),
            poses_deg=math.degrees(float(2 * torch.arcsin(half_sine.clamp(max=1)).mean())),
        )


def draw_mask_pixels(
    masks: Bool[np.ndarray, "n h w"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, "n p 2"]:
    """Random pixels (x, y) inside the masks, the same number for each view and about `count` in total."""
    per_view = max(1, count // len(masks))
    drawn = []
    for mask in masks:  # one mask at a time: the indices of all pixels would need too much memory
        inside = np.flatnonzero(mask)
        chosen = inside[rng.integers(len(inside), size=per_view)]
        drawn.append(np.stack([chosen % mask.shape[1], chosen // mask.shape[1]], axis=-1))
    return np.stack(drawn)

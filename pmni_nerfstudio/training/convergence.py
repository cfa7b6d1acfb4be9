# SPDX-License-Identifier: Apache-2.0
"""Whether training still changes anything: the normals at a fixed set of pixels, and the poses, from check to check."""

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
from pmni_nerfstudio.model.marching import SurfaceGrid

PIXELS = 4096
"""That are looked at: their mean is good to a few percent, and they cost less than a training step."""


@dataclass(frozen=True)
class Change:
    """Means since the last check."""

    normals_deg: float
    """Of the surface, over the pixels that see it both times."""
    poses_deg: float
    """Rotation of the views."""

    def within(self, normals_deg: float, poses_deg: float) -> bool:
        """Whether both are below their limits."""
        return self.normals_deg < normals_deg and self.poses_deg < poses_deg

    def __str__(self) -> str:
        return f"normals turn by {self.normals_deg:.2f} deg, poses by {self.poses_deg:.4f} deg from check to check"


class Convergence:
    """Compares what the pixels see with what they saw at the last check.

    Args:
        masks: of the views; the pixels are drawn from them.
        K: intrinsics in pixels, pixel centres at integers.
        seed: of the draw.
    """

    def __init__(self, masks: Bool[np.ndarray, "n h w"], K: Float[np.ndarray, "n 3 3"], seed: int = 0) -> None:
        view, y, x = pixels_of(masks, PIXELS, np.random.default_rng(seed))
        rays = np.einsum("pij,pj->pi", np.linalg.inv(K)[view], np.stack([x, y, np.ones_like(x)], axis=1))
        self.view = torch.from_numpy(view)
        # OpenGL axes, as the poses have.
        self.rays = torch.from_numpy(rays * np.array([1.0, -1.0, -1.0])).float()
        self.last: Optional[Tuple[Tensor, ...]] = None
        """Normals, whether the pixels see the surface, and rotations, of the last check."""

    @torch.no_grad()
    def check(self, field: PmniField, grid: SurfaceGrid, c2w: Float[Tensor, "n 3 4"]) -> Optional[Change]:
        """How much has changed since the last call.

        Args:
            field: as it is.
            grid: its cache.
            c2w: OpenGL axes.

        Returns:
            None at the first call.
        """
        pose = c2w[self.view.to(c2w.device)]
        directions = functional.normalize((pose[:, :, :3] @ self.rays.to(c2w)[..., None])[..., 0], dim=-1)
        hits = grid.trace(pose[:, :, 3], directions)
        points = pose[:, :, 3] + hits.t[:, None] * directions
        normals = functional.normalize(field.numerical_gradient(points, field.active_voxel), dim=-1)
        rotations = c2w[:, :, :3].double()
        last, self.last = self.last, (normals, hits.hit, rotations)
        if last is None:
            return None
        both = hits.hit & last[1]
        chord = (normals - last[0]).norm(dim=-1)[both]
        turned = (rotations - last[2]).square().sum(dim=(1, 2)).div(8).sqrt()  # the sine of half the angle
        return Change(
            normals_deg=math.degrees(float(2 * torch.arcsin((chord / 2).clamp(max=1)).mean())),
            poses_deg=math.degrees(float(2 * torch.arcsin(turned.clamp(max=1)).mean())),
        )


def pixels_of(
    masks: Bool[np.ndarray, "n h w"], count: int, rng: np.random.Generator
) -> Tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """View, row and column of pixels drawn from the masks, as many from each view."""
    share = max(1, count // len(masks))
    drawn = []
    for view, mask in enumerate(masks):  # one mask after another: the places of all pixels would fill the memory
        inside = np.flatnonzero(mask)
        places = inside[rng.integers(len(inside), size=share)]
        drawn.append(np.stack([np.full(share, view), places // mask.shape[1], places % mask.shape[1]]))
    view, y, x = np.concatenate(drawn, axis=1)
    return view, y, x

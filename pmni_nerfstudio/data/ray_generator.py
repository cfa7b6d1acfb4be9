# SPDX-License-Identifier: Apache-2.0
"""Rays through pixels of pinhole cameras: what nerfstudio's ray generator gives, at a fraction of its cost."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor, nn


class PatchRayGenerator(nn.Module):
    """Rays for a batch of pixels in patches.

    `Cameras.generate_rays` serves every camera model at some fifty tensor operations a call, tens of milliseconds on
    a CPU; pinholes without distortion need one 3x3 matrix per view.

    Args:
        cameras: the split's pinhole cameras, shape (n,); `metadata["cam_idx"]` (n, 1) numbers the training views that
            they are, and is absent where they are none.
        patch_size: side of the patches, which the bundles carry.
    """

    pixel_to_ray: Tensor
    camera_centres: Tensor
    cam_idx: Tensor | None

    def __init__(self, cameras: Cameras, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        # The half pixel: nerfstudio counts a pixel's corner, so that pixel (x, y) is seen at (x + 0.5, y + 0.5).
        fx, fy, cx, cy = (v.double().reshape(-1) for v in (cameras.fx, cameras.fy, cameras.cx, cameras.cy))
        zero = torch.zeros_like(fx)
        pixel_to_camera = torch.stack(
            [
                torch.stack([1 / fx, zero, (0.5 - cx) / fx], dim=-1),
                torch.stack([zero, -1 / fy, (cy - 0.5) / fy], dim=-1),
                torch.stack([zero, zero, zero - 1], dim=-1),
            ],
            dim=-2,
        )
        c2w = cameras.camera_to_worlds.double()
        # Not in the checkpoint: they follow from the scene, whose poses may be noisy in one run and not in the next.
        self.register_buffer("pixel_to_ray", (c2w[:, :, :3] @ pixel_to_camera).float(), persistent=False)
        self.register_buffer("camera_centres", c2w[:, :, 3].float(), persistent=False)
        self.register_buffer("cam_idx", (cameras.metadata or {}).get("cam_idx"), persistent=False)

    def forward(self, indices: Int[Tensor, "R 3"]) -> RayBundle:
        """Rays through pixel centres.

        Args:
            indices: view, row, column.

        Returns:
            (R,) rays in the unit-sphere world: `directions` of unit length; `pixel_area`, the area that a pixel takes
            of the unit sphere of directions; metadata `directions_norm` (R, 1): the length of the direction whose
            part along the optical axis is 1, and `patch_size` (R, 1). `camera_indices` (R, 1) number training views,
            whose poses may have been corrected since; rays of held-out views have none.
        """
        indices = indices.to(self.pixel_to_ray.device)
        view = indices[:, 0]
        pixel = torch.stack([indices[:, 2], indices[:, 1], torch.ones_like(view)], dim=-1).float()
        pixel_to_ray = self.pixel_to_ray[view]
        # Elementwise: a batched product of such small matrices starts threads that cost more than it does.
        rays = (pixel_to_ray * pixel[:, None, :]).sum(dim=-1)
        norm = rays.norm(dim=-1, keepdim=True)
        directions = rays / norm
        return RayBundle(
            origins=self.camera_centres[view],
            directions=directions,
            pixel_area=_pixel_area(pixel_to_ray, directions, norm),
            camera_indices=None if self.cam_idx is None else self.cam_idx[view],
            metadata={"directions_norm": norm, "patch_size": torch.full_like(indices[:, :1], self.patch_size)},
        )


def _pixel_area(
    pixel_to_ray: Float[Tensor, "R 3 3"], directions: Float[Tensor, "R 3"], norm: Float[Tensor, "R 1"]
) -> Float[Tensor, "R 1"]:
    """Length of the unit direction's derivative along x, times that along y.

    Derivatives, where nerfstudio takes the difference to the next pixel: the unit directions of a long lens's
    neighbouring pixels agree to four digits, and single precision leaves little of their difference.
    """
    steps = pixel_to_ray[:, :, :2]
    along = (directions[:, :, None] * steps).sum(dim=1)
    return (steps.square().sum(dim=1) - along.square()).clamp(min=0).sqrt().prod(dim=-1, keepdim=True) / norm.square()

# SPDX-License-Identifier: Apache-2.0
"""Ray generator for pinhole cameras: equivalent to nerfstudio's at a fraction of its cost."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor, nn


class PatchRayGenerator(nn.Module):
    """Generator of rays for batches of pixel patches.

    `Cameras.generate_rays` supports all camera models with about fifty tensor operations per call, tens of milliseconds
    on a CPU; pinhole cameras without distortion need only one 3x3 matrix per view.

    Args:
        cameras: pinhole cameras of the split, shape (n,), with `metadata["cam_idx"]` (n, 1) if they are training views.
        patch_size: width and height of the patches in pixels, stored in the bundles.
    """

    pixel_to_ray: Tensor
    camera_centers: Tensor
    cam_idx: Tensor | None

    def __init__(self, cameras: Cameras, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        # In nerfstudio the center of pixel (x, y) is at (x + 0.5, y + 0.5).
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
        # Not persistent: they follow from the scene and its pose noise, which may differ between runs.
        self.register_buffer("pixel_to_ray", (c2w[:, :, :3] @ pixel_to_camera).float(), persistent=False)
        self.register_buffer("camera_centers", c2w[:, :, 3].float(), persistent=False)
        self.register_buffer("cam_idx", (cameras.metadata or {}).get("cam_idx"), persistent=False)

    def forward(self, indices: Int[Tensor, "R 3"]) -> RayBundle:
        """Rays through pixel centers.

        Args:
            indices: view in the split, row, column.

        Returns:
            (R,) rays in the unit-sphere world: unit `directions`; `pixel_area`, the solid angle of a pixel; metadata
            `directions_norm` (R, 1), the length of the direction of depth 1, and `patch_size` (R, 1). Rays of training
            views, whose poses may be optimized, have `camera_indices` (R, 1); rays of held-out views do not.
        """
        indices = indices.to(self.pixel_to_ray.device)
        view = indices[:, 0]
        pixel = torch.stack([indices[:, 2], indices[:, 1], torch.ones_like(view)], dim=-1).float()
        pixel_to_ray = self.pixel_to_ray[view]
        # Elementwise: threads for a batched product of such small matrices cost more than the product.
        rays = (pixel_to_ray * pixel[:, None, :]).sum(dim=-1)
        norm = rays.norm(dim=-1, keepdim=True)
        directions = rays / norm
        return RayBundle(
            origins=self.camera_centers[view],
            directions=directions,
            pixel_area=_pixel_area(pixel_to_ray, directions, norm),
            camera_indices=None if self.cam_idx is None else self.cam_idx[view],
            metadata={"directions_norm": norm, "patch_size": torch.full_like(indices[:, :1], self.patch_size)},
        )


def _pixel_area(
    pixel_to_ray: Float[Tensor, "R 3 3"], directions: Float[Tensor, "R 3"], norm: Float[Tensor, "R 1"]
) -> Float[Tensor, "R 1"]:
    """Product of the lengths of the derivatives of the unit direction along x and y.

    nerfstudio uses differences between neighboring pixels instead of derivatives; with long focal lengths these agree to
    four digits, so that single precision leaves little of their difference.
    """
    steps = pixel_to_ray[:, :, :2]
    along = (directions[:, :, None] * steps).sum(dim=1)
    return (steps.square().sum(dim=1) - along.square()).clamp(min=0).sqrt().prod(dim=-1, keepdim=True) / norm.square()

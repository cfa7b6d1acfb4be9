# SPDX-License-Identifier: Apache-2.0
"""Rendering of ray bundles from a signed distance field: patches for training, single rays for evaluation."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Dict, Literal, Optional, Tuple

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor, nn

from pmni_nerfstudio.fields.sdf_field import PmniField
from pmni_nerfstudio.model import rendering
from pmni_nerfstudio.model.marching import SurfaceGrid

GradientKind = Literal["surface", "directional", "analytic", "numerical"]


@dataclass(frozen=True)
class Sampling:
    """Placement of the samples along rays."""

    samples_per_ray: int
    """Number of samples."""
    half_width: Float[Tensor, ""]
    """Distance before and behind a surface up to which samples are placed; a tensor, so that the GPU need not wait."""
    window_reach_px: float
    """Maximum depth difference, in pixel footprints, of rays that share sample planes."""
    depth_gradients: bool = True
    """Whether depths have gradients if normals are computed at the surface; those of evaluation never have."""


def render_patches(
    bundle: RayBundle, field: PmniField, grid: SurfaceGrid, sampling: Sampling, gradients: GradientKind
) -> Dict[str, Any]:
    """Render patches of rays, differentiably in field and poses.

    Args:
        bundle: Rays, patch by patch; metadata `patch_size` and `directions_norm`.
        field: Signed distance field.
        grid: Occupancy grid that caches the field.
        sampling: Placement of the samples.
        gradients: Method by which normals are computed (see `PmniModelConfig.gradients`).

    Returns:
        World-space normals (not normalized), accumulation, depth along the ray, and the inputs of the losses.
    """
    side = int(bundle.metadata["patch_size"].view(-1)[0])
    rays = side * side
    if side == 1 and gradients == "directional":
        gradients = "numerical"  # a single ray has no neighbors to take differences with
    hits = grid.trace(bundle.origins.detach(), bundle.directions.detach())
    norms = bundle.metadata["directions_norm"].view(-1, rays)
    origins, directions = bundle.origins.view(-1, rays, 3), bundle.directions.view(-1, rays, 3)
    footprint = (hits.t * bundle.pixel_area[:, 0].sqrt()).view(-1, rays).amax(dim=1)
    planes = rendering.patch_planes(
        hits, norms, sampling.samples_per_ray, sampling.half_width, sampling.window_reach_px * footprint, jitter=True
    )
    # Only patches that hit the surface are sampled; the mask loss needs no samples.
    chosen = planes.hits_surface
    distances = planes.z[chosen][:, None, :] * norms[chosen][..., None]
    positions = origins[chosen][:, :, None] + distances[..., None] * directions[chosen][:, :, None]
    shape = (len(positions), side, side, sampling.samples_per_ray)
    # Normals at the surface need no gradients of the samples that find it.
    needs_gradients = gradients != "surface" or sampling.depth_gradients
    with nullcontext() if needs_gradients else torch.no_grad():
        sdf, slopes = _sdf_and_gradients(field, positions.view(*shape, 3), gradients)
        weights = rendering.neus_weights(sdf, field.inv_s()).view_as(distances)
        depth, accumulation = rendering.along_rays(weights, rendering.interval_midpoints(distances)[..., None])
    if slopes is None:
        surface = origins[chosen] + depth.detach() * directions[chosen]
        footprints = footprint[chosen][:, None].expand(surface.shape[:-1])
        slopes = normals = field.numerical_gradient(surface, field.difference_step(surface, footprints))
    else:
        normals, _ = rendering.along_rays(weights, slopes.view_as(positions))

    index = torch.nonzero(chosen.repeat_interleave(rays))[:, 0]
    count = len(bundle.origins)

    def scatter(values: Float[Tensor, "p k2 c"]) -> Float[Tensor, "r c"]:
        return values.new_zeros(count, values.shape[-1]).index_copy(0, index, values.reshape(len(index), -1))

    return {
        "normal_world": scatter(normals),
        "accumulation": scatter(accumulation[..., None]),
        "depth": scatter(depth),
        "valid": planes.valid.view(-1, 1),
        "near": hits.near[:, None],
        "t_min_sdf": hits.t_min_sdf[:, None],
        "gradients": slopes.reshape(-1, 3),
        "surface": bundle.origins + hits.t[:, None] * bundle.directions,
        "hit": hits.hit[:, None],
        "origins": bundle.origins,
        "directions": bundle.directions,
        "directions_norm": bundle.metadata["directions_norm"],
    }


def _sdf_and_gradients(
    field: PmniField, positions: Float[Tensor, "p k k s 3"], gradients: GradientKind
) -> Tuple[Float[Tensor, "p k k s"], Optional[Float[Tensor, "p k k s 3"]]]:
    """Signed distances and their gradients at samples; no gradients if they are computed at the surface instead."""
    if gradients == "analytic":
        return field.sdf_and_gradient(positions)
    sdf = field.sdf(positions)
    if gradients == "surface":
        return sdf, None
    if gradients == "numerical":
        return sdf, field.numerical_gradient(positions, field.active_voxel)
    return sdf, rendering.directional_gradients(sdf, positions)


@torch.no_grad()
def render_rays(bundle: RayBundle, field: PmniField, grid: SurfaceGrid, sampling: Sampling) -> Dict[str, Any]:
    """Render single rays: the outputs that viewer and exporters use.

    Returns:
        `rgb`, shaded by a headlight; `normals`, world-space, mapped to [0, 1]; `depth`, the distance along the unit ray;
        `accumulation`. Where a ray's accumulation is at most 0.5 it shows the background, whose normal is zero. Where a ray hits no surface, the depth lies behind the scene: nerfstudio's TSDF fusion treats
        space that no ray has passed as solid, and a depth of zero as unknown.
    """
    hits = grid.trace(bundle.origins, bundle.directions)
    index = torch.nonzero(hits.near)[:, 0]
    origins, directions = bundle.origins[index], bundle.directions[index]
    offsets = sampling.half_width * torch.linspace(-1.0, 1.0, sampling.samples_per_ray, device=origins.device)
    distances = hits.t[index][:, None] + offsets
    sdf = field.sdf(origins[:, None] + distances[..., None] * directions[:, None])
    weights = rendering.neus_weights(sdf, field.inv_s())
    mean, visible = rendering.along_rays(weights, rendering.interval_midpoints(distances)[..., None])
    surface = origins + mean * directions
    gradient = field.numerical_gradient(surface, field.difference_step(surface))
    # Rounding can take the sum of the weights above 1, and images must stay in [0, 1].
    accumulation = origins.new_zeros(len(bundle.origins)).index_copy(0, index, visible.clamp(max=1.0))
    behind = bundle.origins.norm(dim=-1) + 3**0.5  # behind the corners of the cube around the unit sphere
    depth = behind.index_copy(0, index, torch.where(visible > 0.5, mean[:, 0], behind[index]))
    normals = torch.zeros_like(bundle.origins).index_copy(0, index, nn.functional.normalize(gradient, dim=-1))
    facing = -(normals * bundle.directions).sum(dim=-1).clamp(max=0.0)
    shade = (0.15 + 0.8 * facing) * accumulation
    normals = torch.where(accumulation[:, None] > 0.5, normals, 0.0)  # rays pass the surface within some pixels
    return {
        "rgb": shade[:, None].expand(-1, 3),
        "normals": ((normals + 1.0) / 2.0).clamp(0.0, 1.0),
        "depth": depth[:, None],
        "accumulation": accumulation[:, None],
    }

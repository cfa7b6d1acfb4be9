# SPDX-License-Identifier: Apache-2.0
"""Volume rendering of an SDF: sample planes, NeuS weights, gradients and sums along rays, as pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pmni_nerfstudio.model.marching import SurfaceHits


@dataclass
class PatchPlanes:
    """Planes parallel to the image on which the rays of a patch take their samples."""

    z: Float[Tensor, "p s"]
    """Depth of each plane along the optical axis, ascending."""
    valid: Bool[Tensor, "p k2"]
    """Rays whose first crossing lies between the planes, or that cross nothing; the others see another sheet."""
    hits_surface: Bool[Tensor, "p"]
    """Patches with at least one ray that crosses the surface."""


def patch_planes(
    hits: SurfaceHits,
    norms: Float[Tensor, "p k2"],
    count: int,
    half_width: float | Tensor,
    reach: Float[Tensor, "p"],
    jitter: bool,
) -> PatchPlanes:
    """Sample planes of patches of k x k rays, from before the nearest crossing of each patch to behind its farthest.

    Crossings farther than `reach` from the patch's median crossing belong to another sheet of the surface (a limb in
    front of a body): they do not extend the planes, and their rays are marked invalid. Shared planes follow Cao and
    Taketomi, "SuperNormal", CVPR 2024.

    Args:
        hits: Surface hits of all rays, patch by patch.
        norms: Length of each ray's direction scaled to depth 1: the ratio of distance along the ray to depth.
        count: Number of planes per patch.
        half_width: Margin before the nearest and behind the farthest crossing, in depth.
        reach: Maximum difference in depth from the median crossing.
        jitter: Shift each patch's planes by a random offset of up to half their spacing.
    """
    z = hits.t.view_as(norms) / norms
    hit = hits.hit.view_as(norms)
    median = torch.where(hit, z, torch.nan).nanmedian(dim=1).values[:, None]
    same_sheet = hit & ((z - median).abs() <= reach[:, None])
    first = torch.where(same_sheet, z, torch.inf).amin(dim=1) - half_width
    last = torch.where(same_sheet, z, -torch.inf).amax(dim=1) + half_width
    any_hit = hit.any(dim=1)
    # Patches off the surface get planes as well, which keeps shapes regular; the caller discards them.
    first, last = torch.where(any_hit, first, 0.0), torch.where(any_hit, last, 1.0)
    fraction = torch.arange(count, device=z.device, dtype=z.dtype).expand(len(z), count)
    offset = torch.rand(len(z), 1, device=z.device) - 0.5 if jitter else torch.zeros(len(z), 1, device=z.device)
    planes = first[:, None] + (last - first)[:, None] * (fraction + offset) / (count - 1)
    return PatchPlanes(z=planes, valid=~hit | same_sheet, hits_surface=any_hit)


def neus_weights(sdf: Float[Tensor, "*rays s"], inv_s: Float[Tensor, ""]) -> Float[Tensor, "*rays s"]:
    """Rendering weights of samples along rays, computed from their SDF (Wang et al., "NeuS", 2021, eq. 13).

    The opacity of the interval that ends at a sample is the relative decrease of the logistic function Phi between its
    ends. Phi is 1 before the first sample, so that no opacity is lost there.

    Args:
        sdf: Signed distance at the samples, nearest first.
        inv_s: Sharpness of the logistic density.
    """
    phi = torch.sigmoid(sdf * inv_s)
    before = torch.cat([torch.ones_like(phi[..., :1]), phi[..., :-1]], dim=-1)
    # The sigmoid underflows in float32 deep inside, where the transmittance is zero anyway.
    alpha = ((before - phi) / before.clamp(min=1e-6)).clamp(0.0, 1.0)
    transmittance = torch.cumprod(1.0 - alpha, dim=-1)
    return alpha * torch.cat([torch.ones_like(alpha[..., :1]), transmittance[..., :-1]], dim=-1)


def _differences(values: Tensor, dim: int) -> Tensor:
    """Central differences along an axis, one-sided at its two ends."""
    length = values.shape[dim]
    first = values.narrow(dim, 1, 1) - values.narrow(dim, 0, 1)
    last = values.narrow(dim, length - 1, 1) - values.narrow(dim, length - 2, 1)
    inner = values.narrow(dim, 2, length - 2) - values.narrow(dim, 0, length - 2)
    return torch.cat([first, inner, last], dim=dim)


def directional_gradients(
    sdf: Float[Tensor, "p k k s"], positions: Float[Tensor, "p k k s 3"]
) -> Float[Tensor, "p k k s 3"]:
    """SDF gradients at the samples of patches, by differences between neighboring samples without extra evaluations.

    Three differences (along both sides of the patch and along the ray) determine the gradient g by
    g . (x' - x) = f' - f, solved with cross products. The result is exact for a linear SDF. Requires k >= 2 and two
    samples per ray. After Cao and Taketomi, "SuperNormal", CVPR 2024, with different stencils.
    """
    a, b, c = (_differences(positions, dim) for dim in (1, 2, 3))
    fa, fb, fc = (_differences(sdf, dim)[..., None] for dim in (1, 2, 3))
    bc, ca, ab = torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)
    return (fa * bc + fb * ca + fc * ab) / (a * bc).sum(dim=-1, keepdim=True)


def interval_midpoints(distances: Float[Tensor, "*rays s"]) -> Float[Tensor, "*rays s"]:
    """Distances at which the samples' opacities are placed: the midpoint of the interval that ends at each sample.

    Placed at the end of the interval, the surface would be rendered half a spacing too deep, and training would then
    inflate it by the same amount.
    """
    midpoints = 0.5 * (distances[..., 1:] + distances[..., :-1])
    return torch.cat([distances[..., :1], midpoints], dim=-1)


def along_rays(
    weights: Float[Tensor, "*rays s"], values: Float[Tensor, "*rays s c"]
) -> tuple[Float[Tensor, "*rays c"], Float[Tensor, "*rays"]]:
    """Weighted mean of values along rays, and the accumulated weight.

    Dividing by the accumulation halves the outward bias of a soft surface.
    """
    accumulation = weights.sum(dim=-1)
    mean = (weights[..., None] * values).sum(dim=-2) / accumulation.clamp(min=1e-3)[..., None]
    return mean, accumulation

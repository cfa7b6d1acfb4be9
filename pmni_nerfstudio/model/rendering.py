# SPDX-License-Identifier: Apache-2.0
"""Volume rendering of an SDF as pure functions of tensors: where to sample, opacities, gradients, sums along rays."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pmni_nerfstudio.model.marching import SurfaceHits


@dataclass
class PatchPlanes:
    """Planes parallel to the image on which the rays of each patch are sampled together."""

    z: Float[Tensor, "p s"]
    """Depth along the camera's axis of each plane, ascending."""
    valid: Bool[Tensor, "p k2"]
    """Rays whose first surface lies between the planes, or that cross nothing; the others see something else."""
    meets: Bool[Tensor, "p"]
    """Patches with a ray that crosses the surface."""


def patch_planes(
    hits: SurfaceHits,
    norms: Float[Tensor, "p k2"],
    count: int,
    half_width: float | Tensor,
    reach: Float[Tensor, "p"],
    jitter: bool,
) -> PatchPlanes:
    """Planes for patches of k x k rays, from just before the nearest crossing of a patch to just behind its farthest.

    Crossings farther than `reach` from the patch's median one belong to another sheet of the surface (a limb before a
    body): they don't stretch the planes, and their rays are marked invalid. (Shared planes: Cao and Taketomi,
    "SuperNormal", CVPR 2024.)

    Args:
        hits: of all rays, patch-major.
        norms: length of the ray's direction whose part along the axis is 1: turns distance into depth.
        count: planes per patch.
        half_width: added before and behind, in depth.
        reach: largest distance in depth from the median crossing.
        jitter: shift the planes at random by up to one spacing.
    """
    z = hits.t.view_as(norms) / norms
    hit = hits.hit.view_as(norms)
    middle = torch.where(hit, z, torch.nan).nanmedian(dim=1).values[:, None]
    same_sheet = hit & ((z - middle).abs() <= reach[:, None])
    first = torch.where(same_sheet, z, torch.inf).amin(dim=1) - half_width
    last = torch.where(same_sheet, z, -torch.inf).amax(dim=1) + half_width
    some = hit.any(dim=1)
    # Patches off the surface get planes too, so that shapes stay regular; the caller leaves them out.
    first, last = torch.where(some, first, 0.0), torch.where(some, last, 1.0)
    fraction = torch.arange(count, device=z.device, dtype=z.dtype).expand(len(z), count)
    offset = torch.rand(len(z), 1, device=z.device) - 0.5 if jitter else torch.zeros(len(z), 1, device=z.device)
    planes = first[:, None] + (last - first)[:, None] * (fraction + offset) / (count - 1)
    return PatchPlanes(z=planes, valid=~hit | same_sheet, meets=some)


def neus_weights(sdf: Float[Tensor, "*rays s"], inv_s: Float[Tensor, ""]) -> Float[Tensor, "*rays s"]:
    """Weight of each sample along a ray from the SDF at the samples, nearest first.

    The opacity of the interval that ends at a sample is the relative drop of the logistic distribution Phi between
    its ends (Wang et al., "NeuS", 2021, eq. 13); before the first sample Phi is 1, so that nothing is lost there.
    """
    phi = torch.sigmoid(sdf * inv_s)
    before = torch.cat([torch.ones_like(phi[..., :1]), phi[..., :-1]], dim=-1)
    # In float32 the sigmoid underflows deep inside; by then nothing of the ray is left to absorb.
    alpha = ((before - phi) / before.clamp(min=1e-6)).clamp(0.0, 1.0)
    passed = torch.cumprod(1.0 - alpha, dim=-1)
    return alpha * torch.cat([torch.ones_like(alpha[..., :1]), passed[..., :-1]], dim=-1)


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
    """Gradient of the SDF at samples of patches by differences between neighbouring samples: no extra evaluation.

    Three differences (along both sides of the patch and along the ray) fix the gradient g by
    g . (x' - x) = f' - f, solved with cross products. Exact where the SDF is linear. (Cao and Taketomi,
    "SuperNormal", CVPR 2024, with other stencils.) Needs k >= 2 and two samples a ray.
    """
    a, b, c = (_differences(positions, dim) for dim in (1, 2, 3))
    fa, fb, fc = (_differences(sdf, dim)[..., None] for dim in (1, 2, 3))
    bc, ca, ab = torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)
    return (fa * bc + fb * ca + fc * ab) / (a * bc).sum(dim=-1, keepdim=True)


def between_samples(distances: Float[Tensor, "*rays s"]) -> Float[Tensor, "*rays s"]:
    """Where along the ray the opacity of each sample belongs: the middle of the interval that ends at it.

    At the interval's end the surface would lie half a spacing too deep; training then puts it so much too far out.
    """
    middles = 0.5 * (distances[..., 1:] + distances[..., :-1])
    return torch.cat([distances[..., :1], middles], dim=-1)


def along_rays(
    weights: Float[Tensor, "*rays s"], values: Float[Tensor, "*rays s c"]
) -> tuple[Float[Tensor, "*rays c"], Float[Tensor, "*rays"]]:
    """Weighted mean of values along rays, and the accumulated weight.

    The mean is divided by the accumulation, which halves the outward shift that a soft surface otherwise gives.
    """
    accumulation = weights.sum(dim=-1)
    mean = (weights[..., None] * values).sum(dim=-2) / accumulation.clamp(min=1e-3)[..., None]
    return mean, accumulation

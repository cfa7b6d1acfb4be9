# SPDX-License-Identifier: Apache-2.0
"""Exact masks, normals and depth of a shape by sphere tracing, in double precision, all rays at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pmni_nerfstudio.data.pinhole import pixel_rays
from pmni_nerfstudio.synth.shapes import OBJECT_RADIUS, Shape

RAYS_PER_CHUNK = 1 << 17
"""Bounds the memory of large scenes (some tens of MB a chunk); more rays at once are no faster."""


def trace(shape: Shape, origins: Tensor, directions: Tensor, tolerance: float = 1e-7, max_steps: int = 500) -> Tensor:
    """First hits of rays with a shape: sphere tracing (Hart 1996), then Newton steps along the ray.

    Args:
        shape: the solid.
        origins: (n, 3) float64, outside of it.
        directions: (n, 3) float64, unit.
        tolerance: a ray has hit where the SDF is below this; silhouettes swell by no more.
        max_steps: rays still undecided after so many steps, which only graze, count as misses.

    Returns:
        distance along the ray (n,), infinite where the ray misses.
    """
    # only the part of the ray inside the sphere that holds the object
    middle = -(origins * directions).sum(-1)
    chord = (1.01 * OBJECT_RADIUS) ** 2 - (origins + middle[:, None] * directions).square().sum(-1)
    hit = torch.full_like(middle, torch.inf)
    active = torch.nonzero(chord > 0).squeeze(-1)
    half = chord[active].sqrt()
    t, end = middle[active] - half, middle[active] + half
    for _ in range(max_steps):
        if len(active) == 0:
            break
        value = shape.sdf(origins[active] + t[:, None] * directions[active])
        arrived = value < tolerance
        hit[active[arrived]] = t[arrived]
        going = ~arrived & (t < end)
        t = (t + value / shape.slope)[going]
        active, end = active[going], end[going]

    found = torch.nonzero(torch.isfinite(hit)).squeeze(-1)
    for _ in range(2):
        t, d = hit[found], directions[found]
        value, gradient = shape.gradient(origins[found] + t[:, None] * d)
        closing = (gradient * d).sum(-1)
        # at grazing rays the Newton step would run off; there the tracer's own tolerance is good enough
        hit[found] = torch.where(closing < -0.05, t - value / closing, t)
    return hit


def render(
    shape: Shape, K: np.ndarray, c2w: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks, normals and depth of every view.

    Args:
        shape: the solid.
        K: (3, 3), integer pixel centres, one for all views.
        c2w: (N, 4, 4), OpenCV axes.
        width, height: of every view.

    Returns:
        masks (N, H, W) bool; normals (N, H, W, 3) float32, unit, OpenCV camera axes, zero off the mask;
        z depth (N, H, W) float32, NaN off the mask.
    """
    rays = [pixel_rays(K, pose, width, height) for pose in c2w]
    origins = torch.from_numpy(np.concatenate([o for o, _ in rays]))
    directions = torch.from_numpy(np.concatenate([d for _, d in rays]))
    distance, normals = torch.empty(len(origins), dtype=torch.float64), torch.zeros_like(origins)
    for part in torch.arange(len(origins)).split(RAYS_PER_CHUNK):
        o, d = origins[part], directions[part]
        t = trace(shape, o, d)
        on = torch.isfinite(t)
        _, gradient = shape.gradient(o[on] + t[on, None] * d[on])
        n = gradient / gradient.norm(dim=-1, keepdim=True)
        # a ray that grazes may stop a hair behind the rim, where the surface already turns away
        seen = (n * d[on]).sum(-1) < 0
        t[on] = torch.where(seen, t[on], torch.inf)
        distance[part] = t
        normals[part[on]] = n * seen[:, None]

    size = (len(c2w), height, width)
    camera_normals = np.einsum("nhwi,nij->nhwj", normals.numpy().reshape(*size, 3), c2w[:, :3, :3])
    forward = np.einsum("nhwi,ni->nhw", directions.numpy().reshape(*size, 3), c2w[:, :3, 2])
    depth = distance.numpy().reshape(size) * forward
    masks = np.isfinite(depth)
    depth[~masks] = np.nan
    return masks, camera_normals.astype(np.float32), depth.astype(np.float32)

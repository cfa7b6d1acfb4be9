# SPDX-License-Identifier: Apache-2.0
"""Exact masks, normals and depth of a shape by sphere tracing, in double precision, all rays at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pmni_nerfstudio.geometry.cameras import pixel_rays
from pmni_nerfstudio.synth.shapes import OBJECT_RADIUS, Shape
from pmni_nerfstudio.threads import one_thread

RAYS_PER_CHUNK = 1 << 17
"""Bounds the memory of large scenes (some tens of MB a chunk); more rays at once are no faster."""


def trace(shape: Shape, origins: Tensor, directions: Tensor, least_step: float = 2e-5, max_steps: int = 2000) -> Tensor:
    """First hits of rays with a shape: sphere tracing (Hart 1996), then the root is refined in its bracket.

    A ray has hit once the SDF changes sign. Steps are never shorter than `least_step`: rays that graze the surface
    would otherwise creep past it for thousands of steps. What this can skip is a sliver as thin as least_step^2.

    Args:
        shape: the solid.
        origins: (n, 3) float64, outside of it.
        directions: (n, 3) float64, unit.
        least_step: in the units of the unit sphere.
        max_steps: a bound that no ray should reach.

    Returns:
        distance along the ray (n,), infinite where the ray misses.

    Raises:
        RuntimeError: rays were still on their way after max_steps: the shape's slope is wrong.
    """
    # only the part of the ray inside the sphere that holds the object
    middle = -(origins * directions).sum(-1)
    chord = (1.01 * OBJECT_RADIUS) ** 2 - (origins + middle[:, None] * directions).square().sum(-1)
    before, after = torch.full_like(middle, torch.inf), torch.full_like(middle, torch.inf)
    active = torch.nonzero(chord > 0).squeeze(-1)
    half = chord[active].sqrt()
    t, end = middle[active] - half, middle[active] + half
    last = t
    for _ in range(max_steps):
        if len(active) == 0:
            break
        value = shape.sdf(origins[active] + t[:, None] * directions[active])
        arrived = value <= 0
        before[active[arrived]], after[active[arrived]] = last[arrived], t[arrived]
        going = ~arrived & (t < end)
        step = (value / shape.slope).clamp(min=least_step)
        last, t, active, end = t[going], (t + step)[going], active[going], end[going]
    else:
        raise RuntimeError(f"{len(active)} rays neither hit nor missed within {max_steps} steps")

    hit = after.clone()
    found = torch.nonzero(torch.isfinite(hit)).squeeze(-1)
    hit[found] = _refine(shape, origins[found], directions[found], before[found], after[found])
    return hit


def _refine(shape: Shape, origins: Tensor, directions: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Where rays (n, 3) enter the shape, between distances (n,) before, outside of it, and after, inside.

    Newton's steps along the ray; bisection for the few rays that those would take out of the bracket: where a ray
    grazes, or cuts a sharp edge so thinly that the SDF inside already belongs to the face it leaves by.
    """
    t, closing = after, torch.zeros_like(after)
    for _ in range(3):
        value, gradient = shape.gradient(origins + t[:, None] * directions)
        closing = (gradient * directions).sum(-1)
        t = t - value / torch.where(closing < 0, closing, -torch.inf)
    slow = torch.nonzero((closing > -0.02) | (t < before - 1e-12) | (t > after + 1e-12)).squeeze(-1)
    low, high, o, d = before[slow], after[slow], origins[slow], directions[slow]
    for _ in range(40):
        mid = (low + high) / 2
        inside = shape.sdf(o + mid[:, None] * d) <= 0
        low, high = torch.where(inside, low, mid), torch.where(inside, mid, high)
    return t.index_put((slow,), low)


@one_thread()
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
        # at the very rim rounding may have the last word
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

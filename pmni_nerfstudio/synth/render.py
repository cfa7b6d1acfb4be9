# SPDX-License-Identifier: Apache-2.0
"""Exact masks, normals and depth maps of a shape by sphere tracing in double precision, for all rays at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pmni_nerfstudio.geometry.camera_rings import OBJECT_RADIUS
from pmni_nerfstudio.geometry.cameras import pixel_rays
from pmni_nerfstudio.synth.shapes import Shape
from pmni_nerfstudio.threads import one_thread

RAYS_PER_CHUNK = 1 << 17
"""Bounds the memory for large scenes to some tens of MB; larger chunks are not faster."""


def trace(shape: Shape, origins: Tensor, directions: Tensor, least_step: float = 2e-5, max_steps: int = 2000) -> Tensor:
    """First intersections of rays with a shape by sphere tracing (Hart, 1996) and refinement of the root.

    A ray hits where the signed distance changes sign. Steps have a minimum length, since rays that graze the surface
    would otherwise need thousands of steps; this can miss slivers about as thin as least_step^2.

    Args:
        shape: the solid.
        origins: (n, 3) float64, outside the shape.
        directions: (n, 3) float64, unit length.
        least_step: minimum length of a step in radii of the unit sphere.
        max_steps: maximum number of steps.

    Returns:
        Distances along the rays (n,), infinite for rays that miss.

    Raises:
        RuntimeError: Rays did not end within `max_steps`, because the shape's slope is wrong.
    """
    # Only the segment of the ray inside the sphere that holds the object.
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
        inside = value <= 0
        before[active[inside]], after[active[inside]] = last[inside], t[inside]
        ongoing = ~inside & (t < end)
        step = (value / shape.slope).clamp(min=least_step)
        last, t, active, end = t[ongoing], (t + step)[ongoing], active[ongoing], end[ongoing]
    else:
        raise RuntimeError(f"{len(active)} rays neither hit nor missed within {max_steps} steps")

    hit = after.clone()
    found = torch.nonzero(torch.isfinite(hit)).squeeze(-1)
    hit[found] = _refine(shape, origins[found], directions[found], before[found], after[found])
    return hit


def _refine(shape: Shape, origins: Tensor, directions: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Distances (n,) at which rays enter the shape, given distances `before` outside the shape and `after` inside it.

    Newton steps along the ray; bisection for the few rays that leave their bracket or graze the surface, such as rays that
    cut a sharp edge so closely that the distance inside is already that to the face through which they leave.
    """
    t, derivative = after, torch.zeros_like(after)
    for _ in range(3):
        value, gradient = shape.gradient(origins + t[:, None] * directions)
        derivative = (gradient * directions).sum(-1)
        t = t - value / torch.where(derivative < 0, derivative, -torch.inf)
    failed = torch.nonzero((derivative > -0.02) | (t < before - 1e-12) | (t > after + 1e-12)).squeeze(-1)
    low, high, o, d = before[failed], after[failed], origins[failed], directions[failed]
    for _ in range(40):
        mid = (low + high) / 2
        inside = shape.sdf(o + mid[:, None] * d) <= 0
        low, high = torch.where(inside, low, mid), torch.where(inside, mid, high)
    return t.index_put((failed,), low)


@one_thread()
def render(
    shape: Shape, K: np.ndarray, c2w: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render masks, normals and depth maps of all views.

    Args:
        shape: the solid.
        K: intrinsics (3, 3) of all views, pixel centers at integers.
        c2w: camera-to-world poses (N, 4, 4), OpenCV axes.
        width: width of the views in pixels.
        height: height of the views in pixels.

    Returns:
        masks: (N, H, W) bool.
        normals: (N, H, W, 3) float32, unit length, OpenCV camera axes, zero off the mask.
        depth: (N, H, W) float32, z depth, NaN off the mask.
    """
    rays = [pixel_rays(K, pose, width, height) for pose in c2w]
    origins = torch.from_numpy(np.concatenate([o for o, _ in rays]))
    directions = torch.from_numpy(np.concatenate([d for _, d in rays]))
    distance, normals = torch.empty(len(origins), dtype=torch.float64), torch.zeros_like(origins)
    for part in torch.arange(len(origins)).split(RAYS_PER_CHUNK):
        o, d = origins[part], directions[part]
        t = trace(shape, o, d)
        hit = torch.isfinite(t)
        _, gradient = shape.gradient(o[hit] + t[hit, None] * d[hit])
        n = gradient / gradient.norm(dim=-1, keepdim=True)
        # At the silhouette, rounding errors can turn a normal away from the camera.
        faces_camera = (n * d[hit]).sum(-1) < 0
        t[hit] = torch.where(faces_camera, t[hit], torch.inf)
        distance[part] = t
        normals[part[hit]] = n * faces_camera[:, None]

    size = (len(c2w), height, width)
    camera_normals = np.einsum("nhwi,nij->nhwj", normals.numpy().reshape(*size, 3), c2w[:, :3, :3])
    forward = np.einsum("nhwi,ni->nhw", directions.numpy().reshape(*size, 3), c2w[:, :3, 2])
    depth = distance.numpy().reshape(size) * forward
    masks = np.isfinite(depth)
    depth[~masks] = np.nan
    return masks, camera_normals.astype(np.float32), depth.astype(np.float32)

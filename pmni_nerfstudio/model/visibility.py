# SPDX-License-Identifier: Apache-2.0
"""Visibility of surface points from cameras, computed from the signed distance field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def view_cosines(
    points: Float[Tensor, "p 3"], normals: Float[Tensor, "p 3"], camera_centers: Float[Tensor, "v 3"]
) -> Float[Tensor, "p v"]:
    """Cosines between each point's outward unit normal and its directions to the cameras; positive if it faces them."""
    to_camera = torch.nn.functional.normalize(camera_centers[None] - points[:, None], dim=-1)
    return (to_camera * normals[:, None]).sum(dim=-1)


@torch.no_grad()
def visible_by_sphere_tracing(
    sdf: Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n"]],
    points: Float[Tensor, "p 3"],
    camera_centers: Float[Tensor, "v 3"],
    candidates: Optional[Bool[Tensor, "p v"]] = None,
    *,
    start: float = 0.03,
    tolerance: float = 2e-3,
    step_scale: float = 0.9,
    max_steps: int = 64,
) -> Bool[Tensor, "p v"]:
    """Whether the segment from each point to each camera is unoccluded, by sphere tracing from the point (Hart, 1996).

    All segments advance together, and decided ones drop out; nothing occludes outside the unit sphere. A segment that
    grazes the surface and is undecided after the last step counts as occluded, because a false "visible" costs more
    than a false "occluded".

    Args:
        sdf: Signed distance, negative inside, in the units of the unit-sphere world; called on a shrinking set of points.
        points: Surface points.
        camera_centers: Camera centers of all views.
        candidates: Pairs to test, None for all; the others are returned as False. (Excluding points that face away
            halves the work.)
        start: Distance from the point at which tracing begins; at least a voxel, because the SDF is about zero at the
            point. A point seen at an angle whose cosine is below `tolerance / start` counts as occluded.
        tolerance: SDF below which a segment counts as occluded.
        step_scale: Step length as a fraction of the SDF; below 1 for fields whose gradient norm is not exactly 1.
        max_steps: Maximum number of SDF evaluations per pair.
    """
    visible = torch.zeros(len(points), len(camera_centers), dtype=torch.bool, device=points.device)
    pairs = torch.ones_like(visible) if candidates is None else candidates
    point, view = pairs.nonzero(as_tuple=True)
    origin = points[point]
    segment = camera_centers[view] - origin
    distance = segment.norm(dim=-1, keepdim=True)
    direction = segment / distance
    traveled = torch.full_like(distance, start)
    for _ in range(max_steps):
        if len(point) == 0:
            break
        position = origin + traveled * direction
        value = sdf(position).unsqueeze(-1)
        free = ((position.norm(dim=-1, keepdim=True) > 1) | (traveled >= distance)).squeeze(-1)
        visible[point[free], view[free]] = True
        undecided = ~free & (value >= tolerance).squeeze(-1)
        traveled = traveled + step_scale * value
        point, view, origin, direction, distance, traveled = (
            t[undecided] for t in (point, view, origin, direction, distance, traveled)
        )
    return visible

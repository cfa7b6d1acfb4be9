# SPDX-License-Identifier: Apache-2.0
"""Which cameras see a point of the surface, asked of the SDF itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def view_cosines(
    points: Float[Tensor, "p 3"], normals: Float[Tensor, "p 3"], camera_centres: Float[Tensor, "v 3"]
) -> Float[Tensor, "p v"]:
    """Cosine between each point's outward unit normal and the direction to each camera: positive where it faces."""
    towards = torch.nn.functional.normalize(camera_centres[None] - points[:, None], dim=-1)
    return (towards * normals[:, None]).sum(dim=-1)


@torch.no_grad()
def visible_by_sphere_tracing(
    sdf: Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n"]],
    points: Float[Tensor, "p 3"],
    camera_centres: Float[Tensor, "v 3"],
    candidates: Optional[Bool[Tensor, "p v"]] = None,
    *,
    start: float = 0.03,
    tolerance: float = 2e-3,
    step_scale: float = 0.9,
    max_steps: int = 64,
) -> Bool[Tensor, "p v"]:
    """Whether the way from each point to each camera is free, by sphere tracing (Hart, 1996) from the point.

    All ways march together, and those decided drop out; outside the unit sphere nothing can stand in the way. A way
    that grazes the surface and isn't decided after the last step counts as hidden: a wrong "visible" costs more than
    a wrong "hidden".

    Args:
        sdf: negative inside; in the unit-sphere world's units, called on a shrinking set of points.
        points: on the surface.
        camera_centres: of all views.
        candidates: pairs to ask about, None: all; the others come back False. (Leave out what faces away: half of the
            work.)
        start: distance from the point at which marching begins: a voxel or more, since f(point) is about zero. A
            point seen at an angle whose cosine is below `tolerance / start` is hidden.
        tolerance: an SDF below it is a hit.
        step_scale: part of the SDF's value by which to step: below 1 for SDFs whose slope is not exactly 1.
        max_steps: evaluations per pair, at most.
    """
    visible = torch.zeros(len(points), len(camera_centres), dtype=torch.bool, device=points.device)
    pairs = torch.ones_like(visible) if candidates is None else candidates
    point, view = pairs.nonzero(as_tuple=True)
    origin = points[point]
    way = camera_centres[view] - origin
    distance = way.norm(dim=-1, keepdim=True)
    direction = way / distance
    travelled = torch.full_like(distance, start)
    for _ in range(max_steps):
        if len(point) == 0:
            break
        position = origin + travelled * direction
        value = sdf(position).unsqueeze(-1)
        free = ((position.norm(dim=-1, keepdim=True) > 1) | (travelled >= distance)).squeeze(-1)
        visible[point[free], view[free]] = True
        going = ~free & (value >= tolerance).squeeze(-1)
        travelled = travelled + step_scale * value
        point, view, origin, direction, distance, travelled = (
            t[going] for t in (point, view, origin, direction, distance, travelled)
        )
    return visible

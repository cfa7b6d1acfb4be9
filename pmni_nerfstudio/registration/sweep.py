# SPDX-License-Identifier: Apache-2.0
"""A start surface for what the visual hull cannot show: courtyards, cavities, scenes seen from one side.

Neither training nor registration moves a wall by more than a few voxels: where the surface stands at the wrong depth
the views contradict each other and pull it nowhere. Here depths are searched, not descended to: `plane_sweep` compares
the views at each depth, `semi_global` carries walls by their edges, `depth_fusion` checks the views against each other
and makes one surface of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pmni_nerfstudio.registration.depth_fusion import IntegrationOptions, agreement, fuse_depths, integrate_depths
from pmni_nerfstudio.registration.hull import grid_points, hull_at, mask_distances
from pmni_nerfstudio.registration.plane_sweep import (
    PlaneSweep,
    PlaneSweepOptions,
    log_depth_gradients,
    matching_costs,
    world_normal_channels,
)
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.semi_global import SemiGlobalOptions, aggregate, winners
from pmni_nerfstudio.registration.surface import Surface
from pmni_nerfstudio.registration.views import Views


@dataclass(frozen=True)
class SweepOptions:
    """All of the sweep."""

    side: int = 128
    """The maps are taken smaller, to about so many pixels along their longer side."""
    planes: PlaneSweepOptions = field(default_factory=PlaneSweepOptions)
    paths: SemiGlobalOptions = field(default_factory=SemiGlobalOptions)
    integration: IntegrationOptions = field(default_factory=IntegrationOptions)
    agreeing: int = 3
    """Views besides its own that a depth needs to be fully believed."""
    doubtful_weight: float = 0.02
    """Of depths that none confirms: they say what is free where nothing else does."""
    truncation_voxels: float = 3.0
    """Of the fused distance."""
    batch: int = 7
    """Views at a time; one takes some 30 MiB at 128 x 128 pixels."""


@dataclass(frozen=True, eq=False)
class Depths:
    """What was found in each view."""

    views: Views
    """The smaller maps that were searched."""
    z: Float[np.ndarray, "n h w"]
    """Depth of each masked pixel; means nothing elsewhere."""
    weights: Float[np.ndarray, "n h w"]
    """How far each is to be believed, 0 to 1; 0 off the mask."""


def sweep_start(views: Views, poses: Poses, resolution: int, options: SweepOptions = SweepOptions()) -> Surface:
    """The surface that the views' normals agree on, searched over all depths.

    Args:
        views: calibrated views in the unit-sphere world.
        poses: of the views; known to about a pixel.
        resolution: vertices per axis of the result's grid over [-1, 1]^3.
        options: of all parts.

    Returns:
        Signed distances, exact near the surface; inside the visual hull, with two votes, and the unit sphere.
    """
    return fused_surface(sweep_depths(views, poses, options), views, poses, resolution, options)


def sweep_depths(views: Views, poses: Poses, options: SweepOptions = SweepOptions()) -> Depths:
    """Depths of every view, without the others' surface: matched, integrated, checked."""
    every = max(1, round(max(views.height, views.width) / options.side))
    small = views.blurred(0.5 * every if every > 1 else 0.0).every(every)
    sweep = PlaneSweep.of(small, poses, options.planes)
    slopes = [log_depth_gradients(small, i) for i in range(len(small))]
    along_x, along_y = (torch.stack(s) for s in zip(*slopes))
    found = _match(small, poses, sweep, along_x, along_y, options)

    def checked(log_depth: Tensor, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
        same, through = agreement(small, poses, torch.exp(log_depth).numpy(), sweep.neighbours, tolerance)
        return same, through

    step = float(sweep.log_step.mean())
    footprint = float(1 / np.median(small.focal))
    same, through = checked(found, 1.5 * step)
    solution = found
    for _ in range(2):
        confidence = ((same - 1) / options.agreeing).clip(0, 1) * (same > through)
        solution = integrate_depths(
            found, torch.from_numpy(confidence), along_x, along_y, footprint, step, options.integration
        )
        same, through = checked(solution, step)
    believed = (same / options.agreeing).clip(0, 1) * (same > through)
    weights = np.where(same >= through, np.maximum(believed, options.doubtful_weight), 0.0) * small.masks
    return Depths(small, torch.exp(solution).numpy(), weights.astype(np.float32))


def _match(
    views: Views, poses: Poses, sweep: PlaneSweep, along_x: Tensor, along_y: Tensor, options: SweepOptions
) -> Float[Tensor, "n h w"]:
    """Log depths with the least cost along the paths."""
    extent = max(1.0, options.planes.reach)
    points = grid_points(65).numpy() * extent
    votes = 1 if len(views) < 8 else 2
    hull = torch.from_numpy(hull_at(points, mask_distances(views.masks), views.K, poses.c2w(), votes))
    hull = hull.view(1, 65, 65, 65)
    channels = world_normal_channels(views, poses)
    found = []
    for first in range(0, len(views), options.batch):
        batch = np.arange(first, min(first + options.batch, len(views)))
        costs = [matching_costs(views, poses, sweep, int(i), channels, hull, extent, options.planes) for i in batch]
        near, step = (torch.from_numpy(a[batch]).float()[:, None, None] for a in (sweep.log_near, sweep.log_step))
        total = aggregate(torch.stack(costs), along_x[batch] / step, along_y[batch] / step, options.paths)
        found.append(near + step * winners(total))
    return torch.cat(found)


def fused_surface(depths: Depths, views: Views, poses: Poses, resolution: int, options: SweepOptions) -> Surface:
    """One surface of the views' depths, within the hull of their full masks."""
    voxel = 2.0 / (resolution - 1)
    points = grid_points(resolution).numpy().astype(np.float64)
    votes = 1 if len(views) < 8 else 2
    hull = hull_at(points, mask_distances(views.masks), views.K, poses.c2w(), votes)
    outside = np.maximum(hull - 0.5 * voxel, np.linalg.norm(points, axis=1) - 1.0)
    sdf = np.maximum(outside, -options.truncation_voxels * voxel).astype(np.float32)
    near = np.flatnonzero(outside < options.truncation_voxels * voxel)
    fused = fuse_depths(points[near], depths.views, poses, depths.z, depths.weights, options.truncation_voxels * voxel)
    sdf[near] = np.maximum(sdf[near], fused)
    surface = Surface(sdf.reshape((resolution,) * 3))
    return surface.redistanced(4) if surface.exists else surface

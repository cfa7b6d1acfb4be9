# SPDX-License-Identifier: Apache-2.0
"""A start surface for what the visual hull cannot show: courtyards, cavities, scenes seen from one side.

Neither training nor registration moves a wall by more than a few voxels: where the surface stands at the wrong depth
the views contradict each other and pull it nowhere. Here depths are searched, not descended to: `plane_sweep` compares
the views at each depth, `semi_global` carries walls by their edges, `depth_fusion` checks the views against each other
and makes one surface of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from pmni_nerfstudio.geometry.hull import hull_distance, mask_distances, visual_hull
from pmni_nerfstudio.geometry.interpolation import grid_points
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.stereo.depth_fusion import (
    IntegrationOptions,
    agreement,
    fuse_depths,
    integrate_depths,
)
from pmni_nerfstudio.registration.stereo.plane_sweep import (
    PlaneSweep,
    PlaneSweepOptions,
    log_depth_gradients,
    matching_costs,
    world_normal_channels,
)
from pmni_nerfstudio.registration.stereo.semi_global_matching import SemiGlobalOptions, aggregate, winners
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views


@dataclass(frozen=True)
class SweepOptions:
    """All of the sweep."""

    side: int = 96
    """The maps are taken smaller for the search of all depths, to about so many pixels along their longer side."""
    finer_steps: int = 4
    """Each step of depth is searched again in so many, two steps either way, on maps of twice the side."""
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
    """Views at a time."""


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
    """Depths of every view: matched, integrated, checked; then once more near what was found, on finer maps."""
    every = max(1, round(max(views.height, views.width) / options.side))
    maps = _Maps.of(views, poses, every, options)
    sweep = PlaneSweep.of(maps.views, poses, options.planes)
    step = float(sweep.log_step.mean())
    found = _search(maps, poses, sweep, options)
    solution, weights = _settled(maps, poses, sweep, found, 1.5 * step, step, options)
    # Only what divides it: pixels stay where they were.
    finer = next(k for k in range(max(1, every // 2), 0, -1) if every % k == 0)
    if finer < every:
        masks = maps.views.masks
        maps = _Maps.of(views, poses, finer, options)
        solution, weights = (_enlarged(a, masks, every // finer, maps.views) for a in (solution, weights))
    fine_step = step / options.finer_steps
    found = _search_near(maps, poses, sweep, solution, weights, fine_step, options)
    solution, weights = _settled(maps, poses, sweep, found, step, 2 * fine_step, options)
    return Depths(maps.views, torch.exp(solution).numpy(), weights.numpy())


@dataclass(frozen=True, eq=False)
class _Maps:
    """What matching looks at, at one size."""

    views: Views
    channels: Float[Tensor, "n 4 h w"]
    along_x: Float[Tensor, "n h w"]
    along_y: Float[Tensor, "n h w"]
    hull: Float[Tensor, "1 r r r"]
    extent: float
    """The hull's grid is over [-extent, extent]^3."""

    @staticmethod
    def of(views: Views, poses: Poses, every: int, options: SweepOptions) -> _Maps:
        small = views.downsampled(every)
        slopes = [log_depth_gradients(small, i) for i in range(len(small))]
        along_x, along_y = (torch.stack(s) for s in zip(*slopes))
        extent, size = max(1.0, options.planes.reach), 65
        votes = 1 if len(views) < 8 else 2
        points = grid_points(size).reshape(-1, 3).numpy() * extent
        hull = torch.from_numpy(hull_distance(points, mask_distances(small.masks), small.K, poses.c2w(), votes))
        return _Maps(
            small, world_normal_channels(small, poses), along_x, along_y, hull.view(1, size, size, size), extent
        )


def _search(maps: _Maps, poses: Poses, sweep: PlaneSweep, options: SweepOptions) -> Float[Tensor, "n h w"]:
    """Log depths with the least cost along the paths, of all depths."""
    found = []
    for batch in torch.arange(len(maps.views)).split(options.batch):
        costs = [
            matching_costs(
                maps.views,
                poses,
                i,
                sweep.neighbours[i],
                sweep.depths(i)[None],
                maps.channels,
                maps.hull,
                maps.extent,
                options.planes,
            )
            for i in batch.tolist()
        ]
        near, step = (
            torch.from_numpy(a[batch.numpy()]).float()[:, None, None] for a in (sweep.log_near, sweep.log_step)
        )
        total = aggregate(torch.stack(costs), maps.along_x[batch] / step, maps.along_y[batch] / step, options.paths)
        found.append(near + step * winners(total))
    return torch.cat(found)


def _search_near(
    maps: _Maps,
    poses: Poses,
    sweep: PlaneSweep,
    about: Float[Tensor, "n h w"],
    weights: Float[Tensor, "n h w"],
    step: float,
    options: SweepOptions,
) -> Float[Tensor, "n h w"]:
    """Log depths with the least cost along the paths, a few small steps about those known, which also tell who sees."""
    occluders = torch.where(weights > 0.5, torch.exp(about), torch.inf).numpy()
    reach = 2 * options.finer_steps
    shifts = step * torch.arange(-reach, reach + 1)
    found = []
    for batch in torch.arange(len(maps.views)).split(max(1, options.batch // 3)):
        costs = []
        for i in batch.tolist():
            depths = torch.exp(about[i][torch.from_numpy(maps.views.masks[i])][:, None] + shifts)
            costs.append(
                matching_costs(
                    maps.views,
                    poses,
                    i,
                    sweep.neighbours[i],
                    depths,
                    maps.channels,
                    maps.hull,
                    maps.extent,
                    options.planes,
                    occluders,
                )
            )
        along_x, along_y, base = maps.along_x[batch] / step, maps.along_y[batch] / step, about[batch] / step
        total = aggregate(torch.stack(costs), along_x, along_y, options.paths, base)
        found.append(about[batch] + step * (winners(total) - reach))
    return torch.cat(found)


def _settled(
    maps: _Maps,
    poses: Poses,
    sweep: PlaneSweep,
    found: Float[Tensor, "n h w"],
    first_tolerance: float,
    step: float,
    options: SweepOptions,
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """Integrated log depths and how far each is believed: confirmed by other views, and not looked through."""
    views = maps.views

    def checked(log_depth: Tensor, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
        return agreement(views, poses, torch.exp(log_depth).numpy(), sweep.neighbours, tolerance)

    same, through = checked(found, first_tolerance)
    solution, footprint = found, float(1 / np.median(views.focal))
    for _ in range(2):
        confidence = torch.from_numpy(((same - 1) / options.agreeing).clip(0, 1) * (same > through))
        solution = integrate_depths(found, confidence, maps.along_x, maps.along_y, footprint, step, options.integration)
        same, through = checked(solution, first_tolerance / 1.5)
    believed = (same / options.agreeing).clip(0, 1) * (same > through)
    weights = np.where(same >= through, np.maximum(believed, options.doubtful_weight), 0.0) * views.masks
    return solution, torch.from_numpy(weights.astype(np.float32))


def _enlarged(
    maps: Float[Tensor, "n h w"], masks: Bool[np.ndarray, "n h w"], times: int, views: Views
) -> Float[Tensor, "n y x"]:
    """Maps whose pixels were those at multiples of `times`, by the nearest one on the mask."""
    rows = np.rint(np.arange(views.height) / times).astype(int).clip(max=maps.shape[1] - 1)
    columns = np.rint(np.arange(views.width) / times).astype(int).clip(max=maps.shape[2] - 1)
    out = []
    for values, mask in zip(maps.numpy(), masks):
        y, x = np.asarray(distance_transform_edt(~mask, return_distances=False, return_indices=True))
        out.append(values[y, x][np.ix_(rows, columns)])
    return torch.from_numpy(np.stack(out))


def fused_surface(depths: Depths, views: Views, poses: Poses, resolution: int, options: SweepOptions) -> Surface:
    """One surface of the views' depths, within the hull of their full masks."""
    voxel = 2.0 / (resolution - 1)
    points = grid_points(resolution).reshape(-1, 3).numpy().astype(np.float64)
    votes = 1 if len(views) < 8 else 2
    hull = hull_distance(points, mask_distances(views.masks), views.K, poses.c2w(), votes)
    outside = np.maximum(hull - 0.5 * voxel, np.linalg.norm(points, axis=1) - 1.0)
    sdf = np.maximum(outside, -options.truncation_voxels * voxel).astype(np.float32)
    near = np.flatnonzero(outside < options.truncation_voxels * voxel)
    fused = fuse_depths(points[near], depths.views, poses, depths.z, depths.weights, options.truncation_voxels * voxel)
    sdf[near] = np.maximum(sdf[near], fused)
    surface = Surface(sdf.reshape((resolution,) * 3))
    return Surface(surface.redistanced(4).sdf.astype(np.float32)) if surface.exists else surface


def hull_agreement(views: Views, poses: Poses, side: int = 64, resolution: int = 49) -> float:
    """How far the views agree on the visual hull: the share of matches, seen alike on it, whose normals are alike.

    Where the hull is near the surface, what two views see at one of its points is the same thing, and their normals
    there differ little (30 degrees). A courtyard's hull is a lid: the views see past each other on it. Seconds, to
    tell whether `sweep_start` is worth its minute.
    """
    every = max(1, round(max(views.height, views.width) / side))
    small = views.downsampled(every)
    votes = 1 if len(views) < 8 else 2
    hull = Surface(visual_hull(small.masks, small.K, poses.c2w(), resolution, votes).numpy())
    if not hull.exists:
        return 0.0
    z = hull.depths(small, poses)
    hit = replace(small, masks=small.masks & np.isfinite(z))
    z = np.where(hit.masks, z, 1.0)
    neighbours = PlaneSweep.of(small, poses, PlaneSweepOptions()).neighbours
    tolerance = 1.5 * hull.voxel / float(np.median(np.linalg.norm(poses.t, axis=1)))
    alike, _ = agreement(hit, poses, z, neighbours, tolerance)
    matched, _ = agreement(hit, poses, z, neighbours, tolerance, angle_deg=180.0)
    return float(alike.sum() / max(matched.sum(), 1.0))

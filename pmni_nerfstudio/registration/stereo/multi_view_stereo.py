# SPDX-License-Identifier: Apache-2.0
"""Multi-view stereo from normal maps: an initial surface with concavities that the visual hull lacks.

Training and registration move a surface by a few voxels at most: at a wrong depth the views' normals contradict each
other and give no direction. Stereo searches all depths instead: plane sweep compares the views at each depth,
semi-global matching propagates depths over flat surfaces, and the depth maps of all views are checked for consistency
and fused. It serves for deep concavities and for captures from one side.
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
    depth_consistency,
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
from pmni_nerfstudio.registration.stereo.semi_global_matching import SemiGlobalOptions, aggregate, winner_takes_all
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views


@dataclass(frozen=True)
class StereoOptions:
    """Parameters of multi-view stereo."""

    side: int = 96
    """Size to which images are reduced for the search over all depths: pixels along the longer side, approximately."""
    finer_steps: int = 4
    """Subdivision of a depth step in the second search, two steps either way, on images of twice the size."""
    planes: PlaneSweepOptions = field(default_factory=PlaneSweepOptions)
    """Parameters of the plane sweep."""
    paths: SemiGlobalOptions = field(default_factory=SemiGlobalOptions)
    """Parameters of semi-global matching."""
    integration: IntegrationOptions = field(default_factory=IntegrationOptions)
    """Parameters of the integration of depths and normals."""
    agreeing: int = 3
    """Number of other views that must confirm a depth for full confidence."""
    doubtful_weight: float = 0.02
    """Weight of depths that no other view confirms; they decide what is free space where no other depth does."""
    truncation_voxels: float = 3.0
    """Truncation of the fused signed distance, in voxels."""
    batch: int = 7
    """Number of views processed at a time."""


@dataclass(frozen=True, eq=False)
class DepthMaps:
    """Depth maps with confidences."""

    views: Views
    """The downsampled views that the depths belong to."""
    z: Float[np.ndarray, "n h w"]
    """Depth of each masked pixel; undefined off the mask."""
    weights: Float[np.ndarray, "n h w"]
    """Confidence of each depth, 0 to 1; 0 off the mask and in holes."""


def stereo_surface(views: Views, poses: Poses, resolution: int, options: StereoOptions = StereoOptions()) -> Surface:
    """Reconstruct a surface by multi-view stereo.

    Args:
        views: calibrated views in the unit-sphere world.
        poses: poses of the views, accurate to about a pixel.
        resolution: vertices per axis of the result's grid over [-1, 1]^3.
        options: parameters of all steps.

    Returns:
        Surface within the visual hull and the unit sphere; its signed distances are exact near the surface.
    """
    return fused_surface(stereo_depths(views, poses, options), views, poses, resolution, options)


def stereo_depths(views: Views, poses: Poses, options: StereoOptions = StereoOptions()) -> DepthMaps:
    """Depth maps of all views: matching, integration and consistency check, first coarse and then refined."""
    stride = max(1, round(max(views.height, views.width) / options.side))
    maps = _MatchingInputs.from_views(views, poses, stride, options)
    sweep = PlaneSweep.from_views(maps.views, poses, options.planes)
    step = float(sweep.log_step.mean())
    found = _search(maps, poses, sweep, options)
    solution, weights = _integrate_and_check(maps, poses, sweep, found, 1.5 * step, step, options)
    # The finer stride must divide the coarse one, so that coarse pixels remain pixels.
    finer = next(k for k in range(max(1, stride // 2), 0, -1) if stride % k == 0)
    if finer < stride:
        masks = maps.views.masks
        maps = _MatchingInputs.from_views(views, poses, finer, options)
        solution, weights = (_upsampled(a, masks, stride // finer, maps.views) for a in (solution, weights))
    fine_step = step / options.finer_steps
    found = _search_near(maps, poses, sweep, solution, weights, fine_step, options)
    solution, weights = _integrate_and_check(maps, poses, sweep, found, step, 2 * fine_step, options)
    return DepthMaps(maps.views, torch.exp(solution).numpy(), weights.numpy())


@dataclass(frozen=True, eq=False)
class _MatchingInputs:
    """Views at one resolution, with everything that is derived from them for matching."""

    views: Views
    channels: Float[Tensor, "n 4 h w"]
    """`world_normal_channels`."""
    along_x: Float[Tensor, "n h w"]
    """Change of log depth per pixel along x, from the normals."""
    along_y: Float[Tensor, "n h w"]
    """Change of log depth per pixel along y."""
    hull: Float[Tensor, "1 r r r"]
    """Signed distance to the visual hull on a grid over [-extent, extent]^3."""
    extent: float

    @staticmethod
    def from_views(views: Views, poses: Poses, stride: int, options: StereoOptions) -> _MatchingInputs:
        small = views.downsampled(stride)
        slopes = [log_depth_gradients(small, i) for i in range(len(small))]
        along_x, along_y = (torch.stack(s) for s in zip(*slopes))
        extent, size = max(1.0, options.planes.reach), 65
        points = grid_points(size).reshape(-1, 3).numpy() * extent
        hull = torch.from_numpy(
            hull_distance(points, mask_distances(small.possible), small.K, poses.c2w(), _hull_votes(views))
        )
        return _MatchingInputs(
            small, world_normal_channels(small, poses), along_x, along_y, hull.view(1, size, size, size), extent
        )

    def costs(
        self,
        poses: Poses,
        sweep: PlaneSweep,
        view: int,
        depths: Float[Tensor, "p d"],
        options: StereoOptions,
        occluders: Float[np.ndarray, "n h w"] | None = None,
    ) -> Float[Tensor, "h w d"]:
        """Matching costs of one view; see `matching_costs`."""
        return matching_costs(
            self.views,
            poses,
            view,
            sweep.neighbors[view],
            depths,
            self.channels,
            self.hull,
            self.extent,
            options.planes,
            occluders,
        )


def _search(maps: _MatchingInputs, poses: Poses, sweep: PlaneSweep, options: StereoOptions) -> Float[Tensor, "n h w"]:
    """Log depths of least aggregated cost among all hypotheses."""
    found = []
    for batch in torch.arange(len(maps.views)).split(options.batch):
        costs = [maps.costs(poses, sweep, i, sweep.depths(i)[None], options) for i in batch.tolist()]
        near, step = (
            torch.from_numpy(a[batch.numpy()]).float()[:, None, None] for a in (sweep.log_near, sweep.log_step)
        )
        total = aggregate(torch.stack(costs), maps.along_x[batch] / step, maps.along_y[batch] / step, options.paths)
        found.append(near + step * winner_takes_all(total))
    return torch.cat(found)


def _search_near(
    maps: _MatchingInputs,
    poses: Poses,
    sweep: PlaneSweep,
    initial: Float[Tensor, "n h w"],
    weights: Float[Tensor, "n h w"],
    step: float,
    options: StereoOptions,
) -> Float[Tensor, "n h w"]:
    """Log depths of least aggregated cost within two coarse steps of known depths, which also define occlusion."""
    occluders = torch.where(weights > 0.5, torch.exp(initial), torch.inf).numpy()
    reach = 2 * options.finer_steps
    shifts = step * torch.arange(-reach, reach + 1)
    found = []
    for batch in torch.arange(len(maps.views)).split(max(1, options.batch // 3)):
        costs = []
        for i in batch.tolist():
            depths = torch.exp(initial[i][torch.from_numpy(maps.views.masks[i])][:, None] + shifts)
            costs.append(maps.costs(poses, sweep, i, depths, options, occluders))
        along_x, along_y, base = maps.along_x[batch] / step, maps.along_y[batch] / step, initial[batch] / step
        total = aggregate(torch.stack(costs), along_x, along_y, options.paths, base)
        found.append(initial[batch] + step * (winner_takes_all(total) - reach))
    return torch.cat(found)


def _integrate_and_check(
    maps: _MatchingInputs,
    poses: Poses,
    sweep: PlaneSweep,
    found: Float[Tensor, "n h w"],
    tolerance: float,
    step: float,
    options: StereoOptions,
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """Integrate depths with normals; returns log depths and their confidence from the consistency between views."""
    views = maps.views

    def check(log_depth: Tensor, limit: float) -> tuple[np.ndarray, np.ndarray]:
        return depth_consistency(views, poses, torch.exp(log_depth).numpy(), sweep.neighbors, limit)

    confirmed, contradicted = check(found, tolerance)
    solution, footprint = found, float(1 / np.median(views.focal))
    for _ in range(2):
        confidence = torch.from_numpy(((confirmed - 1) / options.agreeing).clip(0, 1) * (confirmed > contradicted))
        solution = integrate_depths(found, confidence, maps.along_x, maps.along_y, footprint, step, options.integration)
        confirmed, contradicted = check(solution, tolerance / 1.5)
    confidence = (confirmed / options.agreeing).clip(0, 1) * (confirmed > contradicted)
    weights = np.where(confirmed >= contradicted, np.maximum(confidence, options.doubtful_weight), 0.0) * views.valid
    return solution, torch.from_numpy(weights.astype(np.float32))


def _upsampled(
    maps: Float[Tensor, "n h w"], masks: Bool[np.ndarray, "n h w"], times: int, views: Views
) -> Float[Tensor, "n y x"]:
    """Upsample maps by an integer factor; each pixel takes the value of the nearest coarse pixel on the mask."""
    rows = np.rint(np.arange(views.height) / times).astype(int).clip(max=maps.shape[1] - 1)
    columns = np.rint(np.arange(views.width) / times).astype(int).clip(max=maps.shape[2] - 1)
    out = []
    for values, mask in zip(maps.numpy(), masks):
        y, x = np.asarray(distance_transform_edt(~mask, return_distances=False, return_indices=True))
        out.append(values[y, x][np.ix_(rows, columns)])
    return torch.from_numpy(np.stack(out))


def fused_surface(depths: DepthMaps, views: Views, poses: Poses, resolution: int, options: StereoOptions) -> Surface:
    """Fuse depth maps into one surface within the visual hull of the full-resolution masks."""
    voxel = 2.0 / (resolution - 1)
    points = grid_points(resolution).reshape(-1, 3).numpy().astype(np.float64)
    hull = hull_distance(points, mask_distances(views.possible), views.K, poses.c2w(), _hull_votes(views))
    outside = np.maximum(hull - 0.5 * voxel, np.linalg.norm(points, axis=1) - 1.0)
    sdf = np.maximum(outside, -options.truncation_voxels * voxel).astype(np.float32)
    near = np.flatnonzero(outside < options.truncation_voxels * voxel)
    fused = fuse_depths(points[near], depths.views, poses, depths.z, depths.weights, options.truncation_voxels * voxel)
    sdf[near] = np.maximum(sdf[near], fused)
    surface = Surface(sdf.reshape((resolution,) * 3))
    return Surface(surface.redistanced(4).sdf.astype(np.float32)) if surface.exists else surface


def hull_agreement(views: Views, poses: Poses, side: int = 64, resolution: int = 49) -> float:
    """Share of matches between views on the visual hull whose normals agree within 30 degrees.

    Where the hull is close to the surface, two views see the same surface at a point of the hull. Over a deep concavity
    they see different parts of it, and their normals differ. The test takes seconds and tells whether
    `stereo_surface`, which takes a minute, is worth running.

    Args:
        views: calibrated views in the unit-sphere world.
        poses: poses of the views.
        side: size to which images are reduced: pixels along the longer side, approximately.
        resolution: vertices per axis of the hull's grid.

    Returns:
        Share from 0 to 1; 0 also if there are no matches or no hull.
    """
    stride = max(1, round(max(views.height, views.width) / side))
    small = views.downsampled(stride)
    hull = Surface(visual_hull(small.possible, small.K, poses.c2w(), resolution, _hull_votes(views)).numpy())
    if not hull.exists:
        return 0.0
    z = hull.depths(small, poses)
    hit = replace(small, masks=small.masks & np.isfinite(z))
    z = np.where(hit.masks, z, 1.0)
    neighbors = PlaneSweep.from_views(small, poses, PlaneSweepOptions()).neighbors
    tolerance = 1.5 * hull.voxel / float(np.median(np.linalg.norm(poses.t, axis=1)))
    alike, _ = depth_consistency(hit, poses, z, neighbors, tolerance)
    matched, _ = depth_consistency(hit, poses, z, neighbors, tolerance, angle_deg=180.0)
    return float(alike.sum() / max(matched.sum(), 1.0))


def _hull_votes(views: Views) -> int:
    """Votes of the visual hull: with many views one bad mask must not carve the object away."""
    return 1 if len(views) < 8 else 2

# SPDX-License-Identifier: Apache-2.0
"""Plane sweep stereo on normal maps: matching costs of depth hypotheses in calibrated views.

Plane sweep stereo (Collins, "A space-sweep approach to true multi-image matching", CVPR 1996) compares what the views
see at each hypothesis, here world normals instead of colors. Planes are slanted (Gallup et al., "Real-time
plane-sweeping stereo with multiple sweeping directions", CVPR 2007); the normals give the slant, so that only depth is
searched. Flat surfaces match at many depths: `semi_global_matching` extends the depths at their edges along the slant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pmni_nerfstudio.geometry.cameras import pixel_directions, pixel_grid
from pmni_nerfstudio.geometry.interpolation import lookup_volume
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.views import Views


@dataclass(frozen=True)
class PlaneSweepOptions:
    """Parameters of the plane sweep."""

    reach: float = 1.4
    """Depths are searched up to this distance in front of and behind the world's origin, in radii of the unit sphere.
    More than 1, so that objects outside the unit sphere are not forced into it."""
    neighbors: int = 10
    """Number of views that each view is compared with: those with the most similar viewing directions."""
    best: int = 4
    """Number of best matching neighbors that count at each hypothesis; the others may be occluded."""
    truncation: float = 0.5
    """Maximum distance between two unit world normals; larger differences cost no more."""
    facing: float = 0.1
    """Minimum cosine between normal and viewing direction at which a neighbor counts."""
    outside_hull: float = 1.0
    """Additional cost of points outside the visual hull."""
    hull_slack_px: float = 1.5
    """Distance from the visual hull, in pixels, up to which points count as inside."""
    behind: float = 0.03
    """Relative depth behind a neighbor's surface at which a point counts as occluded."""
    most_steps: int = 128
    """Maximum number of depth hypotheses."""


@dataclass(frozen=True, eq=False)
class PlaneSweep:
    """Depth hypotheses of all views, evenly spaced in log depth, and the views to compare each view with."""

    log_near: Float[np.ndarray, " n"]
    """Logarithm of the nearest depth of each view."""
    log_step: Float[np.ndarray, " n"]
    """Difference in log depth between consecutive hypotheses."""
    steps: int
    """Number of hypotheses per view."""
    neighbors: list[np.ndarray]
    """Indices of the views that each view is compared with, most similar viewing direction first."""

    @staticmethod
    def from_views(views: Views, poses: Poses, options: PlaneSweepOptions) -> PlaneSweep:
        """Choose hypotheses such that one step moves a point by about a pixel in a typical neighbor."""
        angles = np.arccos((poses.R[:, 2] @ poses.R[:, 2].T).clip(-1, 1))
        neighbors, typical = [], []
        for i, row in enumerate(angles):
            near = np.argsort(row)
            near = near[(near != i) & (row[near] > np.radians(2)) & (row[near] < np.radians(50))][: options.neighbors]
            neighbors.append(near)
            typical.extend(row[near])
        distance = np.linalg.norm(poses.t, axis=1)
        near, far = np.maximum(distance - options.reach, 0.1 * distance), distance + options.reach
        footprint = float(np.median(distance / views.focal))
        parallax = float(np.sin(np.median(typical))) if typical else 0.3
        needed = int(np.ceil(float(np.median(far - near)) * parallax / footprint))
        steps = int(np.clip(needed, 16, options.most_steps))
        return PlaneSweep(np.log(near), (np.log(far) - np.log(near)) / (steps - 1), steps, neighbors)

    def depths(self, view: int) -> Float[Tensor, " d"]:
        """Depth hypotheses of one view."""
        index = torch.arange(self.steps, dtype=torch.float32)
        return torch.exp(float(self.log_near[view]) + float(self.log_step[view]) * index)


def _view_directions(views: Views, view: int) -> Float[Tensor, "h w 3"]:
    """Camera-space rays of depth 1 through all pixels of a view, float32."""
    directions = pixel_directions(views.K[view], pixel_grid(views.width, views.height))
    return torch.from_numpy(directions.astype(np.float32))


def world_normal_channels(views: Views, poses: Poses) -> Float[Tensor, "n 4 h w"]:
    """World normals and mask of each view, as channels to interpolate; normals are zero in holes."""
    world = np.einsum("nhwc,ncd->nhwd", views.normals, poses.R.astype(np.float32))
    stacked = np.concatenate([world, views.masks[..., None].astype(np.float32)], axis=-1)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(stacked, -1, 1)))


def matching_costs(
    views: Views,
    poses: Poses,
    view: int,
    neighbors: np.ndarray,
    depths: Float[Tensor, "p d"],
    channels: Float[Tensor, "n 4 h w"],
    hull: Float[Tensor, "1 r r r"],
    hull_extent: float,
    options: PlaneSweepOptions,
    occluders: Float[np.ndarray, "n h w"] | None = None,
) -> Float[Tensor, "h w d"]:
    """Matching cost of each depth hypothesis of each pixel of one view.

    The cost is the mean distance between the pixel's world normal and those of the best matching neighbors, from 0 to
    `truncation`, plus a penalty outside the visual hull. It is 0 off the mask. A neighbor does not count where it has a
    hole, and all costs of a pixel in a hole are the neutral cost of points that no neighbor sees.

    Args:
        views: views with normals and masks.
        poses: poses of the views.
        view: index of the view whose depths are searched.
        neighbors: indices of the views that it is compared with.
        depths: hypotheses of each masked pixel in row-major order, or the same for all pixels (p = 1).
        channels: `world_normal_channels` of the views.
        hull: signed distance to the visual hull, world units, on a grid over [-hull_extent, hull_extent]^3.
        hull_extent: half the edge of the hull's grid.
        options: parameters of the plane sweep.
        occluders: known depths of all views, infinite where unknown; a neighbor does not count for points behind them.
    """
    height, width = views.height, views.width
    mask = torch.from_numpy(views.masks[view])
    R, t = (torch.from_numpy(a[view]).float() for a in (poses.R, poses.t))
    directions, origin = _view_directions(views, view)[mask] @ R, -t @ R  # a point is origin + z direction
    normals = channels[view, :3][:, mask]
    holes = torch.from_numpy(views.masks & ~views.valid).float() if views.has_holes else None
    measured = torch.from_numpy(views.valid[view][views.masks[view]])[:, None]
    # The lowest costs in order; infinite for neighbors that do not see the point.
    steps = depths.shape[1]
    lowest = torch.full((options.best, len(directions), steps), torch.inf)
    observers = torch.zeros(len(directions), steps)
    for j in neighbors:
        to_pixel = torch.from_numpy(views.K[j] @ poses.R[j]).float()
        shift = torch.from_numpy(views.K[j] @ poses.t[j]).float() + to_pixel @ origin
        x, y, z = (k[:, None] * depths + c for k, c in zip((directions @ to_pixel.T).T, shift))
        inverse = 1 / z.clamp(min=1e-3)
        position = torch.stack([x * inverse * (2 / (width - 1)) - 1, y * inverse * (2 / (height - 1)) - 1], dim=-1)
        sampled = F.grid_sample(channels[None, j], position[None], align_corners=True, padding_mode="border")[0]
        center = torch.from_numpy(-poses.t[j] @ poses.R[j]).float()
        facing = (normals.T @ (center - origin))[:, None] - (normals * directions.T).sum(dim=0)[:, None] * depths
        cosine = sum(n[:, None] * f for n, f in zip(normals, sampled[:3])) / sampled[:3].norm(dim=0).clamp(min=1e-6)
        chord = (2 - 2 * cosine).clamp(min=0).sqrt().clamp(max=options.truncation)
        chord = torch.where(sampled[3] > 0.5, chord, options.truncation)
        usable = (position.abs().amax(dim=-1) <= 1) & (z > 1e-3) & (facing > options.facing * z)
        if holes is not None:
            usable &= (
                F.grid_sample(holes[None, j : j + 1], position[None], "nearest", "border", align_corners=True)[0, 0]
                < 0.5
            )
        if occluders is not None:
            surface = torch.from_numpy(occluders[j])[None, None]
            nearest = F.grid_sample(surface, position[None], "nearest", "border", align_corners=True)[0, 0]
            usable &= z < nearest * (1 + options.behind)
        cost = torch.where(usable, chord, torch.inf)
        observers += usable
        for rank in range(options.best):
            lower = torch.minimum(lowest[rank], cost)
            cost = torch.maximum(lowest[rank], cost)
            lowest[rank] = lower
    counted = (observers / 2).ceil().clamp(max=float(options.best))
    chosen = torch.arange(options.best)[:, None, None] < counted
    mean = torch.where(chosen, lowest, 0.0).sum(dim=0) / counted.clamp(min=1)
    # Points that no neighbor sees get a neutral cost.
    mean = torch.where((observers > 0) & measured, mean, 0.6 * options.truncation)
    points = (origin + depths[..., None] * directions[:, None]).reshape(-1, 3)
    outside = torch.from_numpy(lookup_volume(hull, points.numpy() / hull_extent)[:, 0]).view_as(mean)
    mean = mean + options.outside_hull * (outside > options.hull_slack_px * depths / float(views.focal[view]))
    costs = torch.zeros(height, width, steps)
    costs[mask] = mean
    return costs


def log_depth_gradients(views: Views, view: int) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """Change of log depth per pixel along x and y according to the normals; NaN where undefined.

    With the ray r of depth 1: d log z = -n . dr / (n . r) (Cao et al., "Bilateral normal integration", ECCV 2022).
    """
    rays = _view_directions(views, view)
    normals = torch.from_numpy(views.normals[view])
    inverse = torch.from_numpy(np.linalg.inv(views.K[view])).float()
    facing = (normals * rays).sum(dim=-1)
    usable = torch.from_numpy(views.valid[view]) & (facing < -0.05 * rays.norm(dim=-1))
    along = (-(normals @ inverse[:, axis]) / facing.clamp(max=-1e-3) for axis in (0, 1))
    x, y = (torch.where(usable, a, torch.nan) for a in along)
    return x, y

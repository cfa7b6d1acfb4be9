# SPDX-License-Identifier: Apache-2.0
"""Depths of calibrated views from their normal maps alone: a plane sweep with known slants.

At a depth hypothesis the known normal of a pixel gives the tangent plane there, so one number is searched for, not
three: plane-sweep stereo (Collins, "A space-sweep approach to true multi-image matching", CVPR 1996) with the slanted
planes of Gallup et al. ("Real-time plane-sweeping stereo with multiple sweeping directions", CVPR 2007), and world
normals in the place of colours. Flat walls look the same at many depths; what lies between their edges is carried by
`semi_global`, which follows the slants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pmni_nerfstudio.geometry.interpolation import lookup_volume
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.views import Views


@dataclass(frozen=True)
class PlaneSweepOptions:
    """How depths are searched."""

    reach: float = 1.4
    """Depths from so far before the world's origin to so far behind it, scene radii: more than 1, since what stands
    outside the unit sphere must not be pressed into it."""
    neighbours: int = 10
    """Views that each view is compared with: those nearest in direction."""
    best: int = 4
    """Of them, so many count at each hypothesis, those that agree best: the others may be occluded."""
    truncation: float = 0.5
    """Chord between world normals at which they just differ."""
    facing: float = 0.1
    """Least cosine at which a neighbour must see the hypothesis to be asked."""
    outside_hull: float = 1.0
    """Cost of a place outside the visual hull."""
    hull_slack_px: float = 1.5
    """How far outside the hull is still taken as inside."""
    behind: float = 0.03
    """Relative depth by which a place must stand behind a neighbour's depth to be taken as hidden from it."""
    most_steps: int = 128
    """Of depth."""


@dataclass(frozen=True, eq=False)
class PlaneSweep:
    """Where the hypotheses stand: evenly in log depth, the same number for every view."""

    log_near: Float[np.ndarray, " n"]
    """Log of the nearest depth of each view."""
    log_step: Float[np.ndarray, " n"]
    """From one hypothesis to the next."""
    steps: int
    neighbours: list[np.ndarray]
    """Indices of the views that each view is compared with, nearest in direction first."""

    @staticmethod
    def of(views: Views, poses: Poses, options: PlaneSweepOptions) -> PlaneSweep:
        """One step moves a point by about a pixel in a typical neighbour."""
        angles = np.arccos((poses.R[:, 2] @ poses.R[:, 2].T).clip(-1, 1))
        neighbours, typical = [], []
        for i, row in enumerate(angles):
            near = np.argsort(row)
            near = near[(near != i) & (row[near] > np.radians(2)) & (row[near] < np.radians(50))][: options.neighbours]
            neighbours.append(near)
            typical.extend(row[near])
        distance = np.linalg.norm(poses.t, axis=1)
        near, far = np.maximum(distance - options.reach, 0.1 * distance), distance + options.reach
        footprint = float(np.median(distance / views.focal))
        parallax = float(np.sin(np.median(typical))) if typical else 0.3
        wanted = int(np.ceil(float(np.median(far - near)) * parallax / footprint))
        steps = int(np.clip(wanted, 16, options.most_steps))
        return PlaneSweep(np.log(near), (np.log(far) - np.log(near)) / (steps - 1), steps, neighbours)

    def depths(self, view: int) -> Float[Tensor, " d"]:
        """z of a view's hypotheses."""
        index = torch.arange(self.steps, dtype=torch.float32)
        return torch.exp(float(self.log_near[view]) + float(self.log_step[view]) * index)


def pixel_rays(views: Views, view: int) -> Float[Tensor, "h w 3"]:
    """Camera-axes directions of a view's pixels, of z = 1."""
    y, x = np.mgrid[: views.height, : views.width]
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1).astype(np.float64)
    return torch.from_numpy((pixels @ np.linalg.inv(views.K[view]).T).astype(np.float32))


def world_normal_channels(views: Views, poses: Poses) -> Float[Tensor, "n 4 h w"]:
    """For lookups: world normals and the mask."""
    world = np.einsum("nhwc,ncd->nhwd", views.normals, poses.R.astype(np.float32))
    stacked = np.concatenate([world, views.masks[..., None].astype(np.float32)], axis=-1)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(stacked, -1, 1)))


def matching_costs(
    views: Views,
    poses: Poses,
    view: int,
    neighbours: np.ndarray,
    depths: Float[Tensor, "p d"],
    channels: Float[Tensor, "n 4 h w"],
    hull: Float[Tensor, "1 r r r"],
    hull_extent: float,
    options: PlaneSweepOptions,
    occluders: Float[np.ndarray, "n h w"] | None = None,
) -> Float[Tensor, "h w d"]:
    """How badly each depth of each pixel fits the neighbours, 0 to `truncation`, more outside the hull; 0 off the mask.

    Args:
        views: normals and masks.
        poses: of the views.
        view: the view whose depths are searched.
        neighbours: indices of the views it is compared with.
        depths: hypotheses of each masked pixel, in row order, or of all of them (p = 1).
        channels: `world_normal_channels`.
        hull: signed distance to the visual hull, world units.
        hull_extent: the hull's grid is over [-extent, extent]^3.
        options: weights.
        occluders: depths of every view, infinite where nothing is; a neighbour is not asked about what they hide.
    """
    height, width = views.height, views.width
    mask = torch.from_numpy(views.masks[view])
    R, t = (torch.from_numpy(a[view]).float() for a in (poses.R, poses.t))
    directions, origin = pixel_rays(views, view)[mask] @ R, -t @ R  # a point is at origin + z direction
    normals = channels[view, :3][:, mask]
    # The k least, in order; a neighbour that can't see a place says nothing of it.
    steps = depths.shape[1]
    least = torch.full((options.best, len(directions), steps), torch.inf)
    asked = torch.zeros(len(directions), steps)
    for j in neighbours:
        to_pixel = torch.from_numpy(views.K[j] @ poses.R[j]).float()
        shift = torch.from_numpy(views.K[j] @ poses.t[j]).float() + to_pixel @ origin
        x, y, z = (k[:, None] * depths + c for k, c in zip((directions @ to_pixel.T).T, shift))
        inverse = 1 / z.clamp(min=1e-3)
        at = torch.stack([x * inverse * (2 / (width - 1)) - 1, y * inverse * (2 / (height - 1)) - 1], dim=-1)
        found = F.grid_sample(channels[None, j], at[None], align_corners=True, padding_mode="border")[0]
        centre = torch.from_numpy(-poses.t[j] @ poses.R[j]).float()
        facing = (normals.T @ (centre - origin))[:, None] - (normals * directions.T).sum(dim=0)[:, None] * depths
        cosine = sum(n[:, None] * f for n, f in zip(normals, found[:3])) / found[:3].norm(dim=0).clamp(min=1e-6)
        chord = (2 - 2 * cosine).clamp(min=0).sqrt().clamp(max=options.truncation)
        chord = torch.where(found[3] > 0.5, chord, options.truncation)
        usable = (at.abs().amax(dim=-1) <= 1) & (z > 1e-3) & (facing > options.facing * z)
        if occluders is not None:
            front = torch.from_numpy(occluders[j])[None, None]
            nearest = F.grid_sample(front, at[None], "nearest", "border", align_corners=True)[0, 0]
            usable &= z < nearest * (1 + options.behind)
        cost = torch.where(usable, chord, torch.inf)
        asked += usable
        for rank in range(options.best):
            less = torch.minimum(least[rank], cost)
            cost = torch.maximum(least[rank], cost)
            least[rank] = less
    counted = (asked / 2).ceil().clamp(max=float(options.best))
    chosen = torch.arange(options.best)[:, None, None] < counted
    mean = torch.where(chosen, least, 0.0).sum(dim=0) / counted.clamp(min=1)
    # Nobody to ask: neither good nor bad.
    mean = torch.where(asked > 0, mean, 0.6 * options.truncation)
    points = (origin + depths[..., None] * directions[:, None]).reshape(-1, 3)
    beyond = torch.from_numpy(lookup_volume(hull, points.numpy() / hull_extent)[:, 0]).view_as(mean)
    mean = mean + options.outside_hull * (beyond > options.hull_slack_px * depths / float(views.focal[view]))
    costs = torch.zeros(height, width, steps)
    costs[mask] = mean
    return costs


def log_depth_gradients(views: Views, view: int) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """Change of log z from pixel to pixel along x and along y that the normals ask for, NaN where they cannot.

    With n~ = n . ray of z = 1: d log z = -n . d(ray) / n~ (Cao et al., "Bilateral normal integration", ECCV 2022).
    """
    rays = pixel_rays(views, view)
    normals = torch.from_numpy(views.normals[view])
    inverse = torch.from_numpy(np.linalg.inv(views.K[view])).float()
    facing = (normals * rays).sum(dim=-1)
    usable = torch.from_numpy(views.masks[view]) & (facing < -0.05 * rays.norm(dim=-1))
    along = (-(normals @ inverse[:, axis]) / facing.clamp(max=-1e-3) for axis in (0, 1))
    x, y = (torch.where(usable, a, torch.nan) for a in along)
    return x, y

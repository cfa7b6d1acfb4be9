# SPDX-License-Identifier: Apache-2.0
"""Phase two of registration: poses and surface in turn, coarse to fine, from poses that are roughly right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from pmni_nerfstudio.geometry.hull import hull_distance, mask_distances, visual_hull
from pmni_nerfstudio.registration.bundle_adjustment.normal_lookup import lookup_channels
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleOptions, BundleProblem
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import contours, graze
from pmni_nerfstudio.registration.framing import frame_object
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.normal_fusion import fuse_normals
from pmni_nerfstudio.registration.surface.poisson import Band, PoissonOptions, band_poisson
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views


@dataclass(frozen=True)
class Level:
    """Some rounds at one resolution."""

    resolution: int
    """Grid vertices per axis."""
    rounds: int
    blur: float = 0.0
    """Gaussian's width on the normal maps, in scene radii at the object."""
    huber: float = 0.02
    points: int = 4000
    """Surface points of the pose step."""
    hull_votes: int | None = None
    """Begin again from the visual hull, with so many votes."""
    slack_voxels: float = 0.25
    """How far the surface may stand out of the visual hull."""


@dataclass(frozen=True)
class AlternationSchedule:
    """Coarse to fine."""

    levels: tuple[Level, ...] = (
        Level(49, 4, blur=0.0166, huber=0.1, hull_votes=3, slack_voxels=1.0),
        Level(65, 5, hull_votes=2, slack_voxels=0.5),
        Level(97, 4, points=12000),
        Level(129, 3, points=12000),
    )
    bundle: BundleOptions = field(default_factory=BundleOptions)
    poisson: PoissonOptions = field(default_factory=PoissonOptions)
    band_voxels: float = 3.0
    criteria: Criteria = Criteria(max_iterations=2, initial_damping=1e-3, damping_floor=1e-9, relative_decrease=0.0)


@dataclass
class Round:
    """What one round came to."""

    level: int
    round: int
    resolution: int
    poses: Poses
    surface: Surface
    residual_deg: np.ndarray
    """(N,) median angle between each view's normals and the surface points' mean normals."""


def alternate(
    views: Views,
    poses: Poses,
    schedule: AlternationSchedule = AlternationSchedule(),
    seed: int = 0,
    fixed_poses: bool = False,
    on_round: Callable[[Round], None] | None = None,
) -> tuple[Poses, Surface]:
    """Pose steps (normal bundle adjustment) and surface steps (band-limited Poisson) in turn."""
    rng = np.random.default_rng(seed)
    distances = mask_distances(views.masks)
    surface: Surface | None = None
    for number, level in enumerate(schedule.levels):
        footprint = float(np.median(poses.t[:, 2] / views.focal))
        sigma = level.blur / footprint
        blurred = views.blurred(sigma if sigma > 0.4 else 0.0)
        channels = lookup_channels(blurred, schedule.bundle.bend)
        if surface is None or level.hull_votes is not None:
            votes = min(level.hull_votes or 1, max(1, len(views) // 4))
            if not fixed_poses:
                poses = frame_object(views, poses, votes)
            surface = Surface(visual_hull(views.masks, views.K, poses.c2w(), level.resolution, votes).numpy())
        surface = surface.resampled(level.resolution)
        outline = contours(views, schedule.bundle.contour_points)
        options = replace(schedule.bundle, points=level.points, huber=level.huber)
        surface = surface.redistanced(schedule.band_voxels + 1)
        for k in range(level.rounds):
            depths = surface.depths(views, poses)
            residual = np.full(len(views), np.nan)
            if not fixed_poses:
                problem = BundleProblem(blurred, surface, poses, depths, outline, options, rng, channels)
                poses = solve(problem, poses, schedule.criteria).state
                residual = problem.residual_deg
            surface = surface_step(blurred, channels, poses, surface, depths, distances, outline, level, schedule)
            if on_round is not None:
                on_round(Round(number, k, level.resolution, poses, surface, residual))
    assert surface is not None
    return poses, surface


def surface_step(
    views: Views,
    channels: list[Tensor],
    poses: Poses,
    surface: Surface,
    depths: np.ndarray,
    distances: np.ndarray,
    outline: list[np.ndarray],
    level: Level,
    schedule: AlternationSchedule,
) -> Surface:
    """The surface that the views' normals ask for, near the one there is and within the hull."""
    band = Band.of(surface.sdf, schedule.band_voxels)
    normals, weights = fuse_normals(views, channels, poses, surface, depths, band.points, band.sdf)
    grazing = [graze(surface, pixels, views.K[i], poses, i) for i, pixels in enumerate(outline)]
    near = 0.9 * schedule.band_voxels * surface.voxel
    zeros = np.concatenate([g.points[np.abs(g.sdf) < near] for g in grazing])
    votes = 1 if len(views) < 8 else 2
    floor = hull_distance(band.points, distances, views.K, poses.c2w(), votes) - level.slack_voxels * surface.voxel
    return Surface(band_poisson(surface.sdf, band, normals, weights, zeros, floor, schedule.poisson))

# SPDX-License-Identifier: Apache-2.0
"""Alternation of pose steps and surface steps, coarse to fine, from roughly right poses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from pmni_nerfstudio.geometry.hull import hull_distance, mask_distances, visual_hull
from pmni_nerfstudio.registration.bundle_adjustment.joint import JointProblem
from pmni_nerfstudio.registration.bundle_adjustment.normal_lookup import lookup_channels
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleOptions, BundleProblem
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import contours, rim_points
from pmni_nerfstudio.registration.framing import frame_object
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.surface.normal_fusion import fuse_normals
from pmni_nerfstudio.registration.surface.pixel_normals import PixelNormals, edge_weights, smooth_weights
from pmni_nerfstudio.registration.surface.poisson import Band, PoissonOptions, band_poisson
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_MAX_VERTICES_PER_PIXEL = 3.5
"""Grid vertices, over the whole cube, for each pixel of the object's diameter, up to which a grid is worth its time: about
two vertices per pixel on an object that fills half of the cube."""


@dataclass(frozen=True)
class Level:
    """Rounds of alternation at one resolution."""

    resolution: int
    """Grid vertices per axis."""
    rounds: int
    blur: float = 0.0
    """Standard deviation of the Gaussian blur of the normal maps, in radii of the unit sphere at the object."""
    huber: float = 0.02
    """Huber threshold of the pose steps; see `BundleOptions`."""
    points: int = 4000
    """Surface points of a pose step."""
    hull_votes: int | None = None
    """Votes of the visual hull that the level restarts from, which restores thin parts that early errors carved off; None:
    the level continues with the current surface."""
    pixel_normals: Literal["smooth", "edges"] | None = None
    """Whether the surface follows the normals of single pixels instead of means over views, if the maps are fine enough for
    the grid: more detail, from a surface that is already close. Pixels beside sharp edges count little ("smooth") or, if
    they belong to one face, fully ("edges"), which needs poses that do not move any more."""
    slack_voxels: float = 0.25
    """Distance by which the surface may exceed the visual hull, in voxels."""


@dataclass(frozen=True)
class AlternationSchedule:
    """Levels, coarse to fine, and options of the steps."""

    levels: tuple[Level, ...] = (
        Level(49, 4, blur=0.0166, huber=0.1, hull_votes=3, slack_voxels=1.0),
        Level(65, 5, hull_votes=2, slack_voxels=0.5),
        Level(97, 4, points=12000),
        Level(129, 3, points=12000, pixel_normals="smooth"),
    )
    detail: Level = Level(193, 2, pixel_normals="edges")
    """Level of the surface alone, at the final poses."""
    detail_poisson: PoissonOptions = PoissonOptions(iterations=250, tolerance=1e-6)
    """Options of its linear systems: the height of a flat face, which only the rest of the surface determines, converges
    slowly."""
    bundle: BundleOptions = field(default_factory=BundleOptions)
    poisson: PoissonOptions = field(default_factory=PoissonOptions)
    band_voxels: float = 3.0
    """Half-width of the narrow band about the surface, in voxels."""
    criteria: Criteria = Criteria(max_iterations=2, initial_damping=1e-3, damping_floor=1e-9, relative_decrease=0.0)

    def split_at_restart(self) -> tuple[AlternationSchedule, AlternationSchedule]:
        """Levels before and from the first restart from the visual hull, if any after the first level."""
        levels = self.levels
        restart = next((i for i, level in enumerate(levels) if i > 0 and level.hull_votes is not None), 0)
        return replace(self, levels=levels[:restart]), replace(self, levels=levels[restart:])


@dataclass
class Round:
    """Result of one round of alternation."""

    resolution: int
    poses: Poses
    surface: Surface
    residual_deg: Float[np.ndarray, " n"]
    """Median angle between each view's normals and the mean normals of the surface points, in degrees; NaN for views that
    see no points together with another view."""

    @property
    def median_residual_deg(self) -> float:
        """Median of the residuals that are known; NaN if none is."""
        known = self.residual_deg[np.isfinite(self.residual_deg)]
        return float(np.median(known)) if len(known) else float("nan")


def alternate(
    views: Views,
    poses: Poses,
    schedule: AlternationSchedule = AlternationSchedule(),
    seed: int = 0,
    fixed_poses: bool = False,
    on_round: Callable[[Round], None] | None = None,
    surface: Surface | None = None,
) -> tuple[Poses, Surface]:
    """Alternate pose steps (normal bundle adjustment) and surface steps (band-limited Poisson).

    Args:
        views: views to register.
        poses: their initial poses.
        schedule: levels, coarse to fine, and options.
        seed: seed of the surface points.
        fixed_poses: take surface steps only.
        on_round: called after each round.
        surface: initial surface; by default the visual hull, from which a level with `hull_votes` starts in any case.
    """
    poses, surfaces = alternate_frames(
        [views], poses, schedule, seed, fixed_poses, on_round, None if surface is None else [surface]
    )
    return poses, surfaces[0]


def alternate_frames(
    frames: Sequence[Views],
    poses: Poses,
    schedule: AlternationSchedule = AlternationSchedule(),
    seed: int = 0,
    fixed_poses: bool = False,
    on_round: Callable[[Round], None] | None = None,
    surfaces: Sequence[Surface] | None = None,
) -> tuple[Poses, list[Surface]]:
    """`alternate` for several moments at once: each has a surface of its own, and all have the same poses.

    Args:
        frames: the same views at several moments.
        poses: their initial poses.
        schedule: levels, coarse to fine, and options.
        seed: seed of the surface points.
        fixed_poses: take surface steps only.
        on_round: called after each round, with the first frame's surface and the mean of the frames' residuals.
        surfaces: initial surfaces of the frames; see `alternate`.
    """
    rng = np.random.default_rng(seed)
    distances = [mask_distances(views.possible) for views in frames]
    curves = [contours(views, schedule.bundle.contour_points) for views in frames]
    current = None if surfaces is None else list(surfaces)
    for level in schedule.levels:
        footprint = float(np.median(poses.t[:, 2] / frames[0].focal))
        sigma = level.blur / footprint
        blurred = [views.blurred(sigma if sigma > 0.4 else 0.0) for views in frames]
        channels = [lookup_channels(views, schedule.bundle.curvature) for views in blurred]
        if current is None or level.hull_votes is not None:
            votes = min(level.hull_votes or 1, max(1, len(poses) // 4))
            if not fixed_poses:
                poses = frame_object(all_moments(frames), poses, votes)
            c2w = poses.c2w()
            current = [
                Surface(visual_hull(views.possible, views.K, c2w, level.resolution, votes).numpy()) for views in frames
            ]
        options = replace(schedule.bundle, points=level.points, huber=level.huber)
        weights = [_pixel_weights(views, maps, level, schedule) for views, maps in zip(blurred, channels)]
        current = [surface.resampled(level.resolution).redistanced(schedule.band_voxels + 1) for surface in current]
        for _ in range(level.rounds):
            depths = [surface.depths(views, poses) for views, surface in zip(frames, current)]
            residual = np.full(len(poses), np.nan)
            if not fixed_poses:
                problems = [
                    BundleProblem(*of_frame, options, rng, maps)
                    for *of_frame, maps in zip(blurred, current, repeat(poses), depths, curves, channels)
                ]
                problem = problems[0] if len(problems) == 1 else JointProblem(problems)
                poses = solve(problem, poses, schedule.criteria).state
                residual = _mean_of_known(np.array([problem.residual_deg for problem in problems]))
            current = [
                surface_step(views, maps, poses, *of_frame, level, schedule)
                for views, maps, *of_frame in zip(blurred, channels, current, depths, distances, curves, weights)
            ]
            if on_round is not None:
                on_round(Round(level.resolution, poses, current[0], residual))
    assert current is not None
    return poses, current


def _mean_of_known(residual_deg: Float[np.ndarray, "f n"]) -> Float[np.ndarray, " n"]:
    """Mean residual of each view over the frames in which it is known; NaN where it is known in none."""
    known = np.isfinite(residual_deg)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, residual_deg, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def all_moments(frames: Sequence[Views]) -> Views:
    """Views whose masks are true where the object is at any moment."""
    if len(frames) == 1:
        return frames[0]
    masks = np.any([views.masks for views in frames], axis=0)
    unknown = np.any([views.possible for views in frames], axis=0) & ~masks
    return replace(frames[0], masks=masks, unknown=unknown if unknown.any() else None)


def detailed(views: Views, poses: Poses, surface: Surface, schedule: AlternationSchedule) -> Surface:
    """The surface at the schedule's level of detail, with the given poses; unchanged where the maps are too coarse for it.

    Args:
        views: views that the surface is made from.
        poses: their poses.
        surface: the surface, close to the result.
        schedule: schedule with the level.
    """
    if not _fine_enough(views, schedule.detail.resolution):
        return surface
    level = replace(schedule, levels=(schedule.detail,), poisson=schedule.detail_poisson)
    return alternate(views, poses, level, fixed_poses=True, surface=surface)[1]


def _fine_enough(views: Views, resolution: int) -> bool:
    """Whether single pixels determine a grid of this many vertices per axis."""
    pixels_across = 2 * float(np.sqrt(np.median(views.masks.sum(axis=(1, 2))) / np.pi))
    return resolution <= _MAX_VERTICES_PER_PIXEL * pixels_across


def _pixel_weights(
    views: Views, channels: list[Float[Tensor, "11 h w"]], level: Level, schedule: AlternationSchedule
) -> list[Float[np.ndarray, "h w"]] | None:
    """Confidence of the single pixels that a level's surface follows; None if it follows means over views."""
    if level.pixel_normals is None or not _fine_enough(views, level.resolution):
        return None
    if level.pixel_normals == "edges":
        return edge_weights(views, schedule.bundle.curvature)
    return smooth_weights(channels)


def alternate_subset(
    views: Views,
    poses: Poses,
    included: Bool[np.ndarray, " n"],
    schedule: AlternationSchedule,
    seed: int = 0,
    on_round: Callable[[Round], None] | None = None,
) -> tuple[Poses, Surface]:
    """Alternate over some of the views; the other poses follow the motion of the world as a whole."""
    index = np.flatnonzero(included)
    updated, surface = alternate(views.subset(list(index)), poses.subset(index), schedule, seed, on_round=on_round)
    moved = poses.transformed(*align(poses.subset(index), updated))
    return moved.replaced(index, updated), surface


def surface_step(
    views: Views,
    channels: list[Float[Tensor, "11 h w"]],
    poses: Poses,
    surface: Surface,
    depths: Float[np.ndarray, "n h w"],
    distances: Float[np.ndarray, "n h w"],
    curves: list[Float[np.ndarray, "p 2"]],
    pixel_weights: list[Float[np.ndarray, "h w"]] | None,
    level: Level,
    schedule: AlternationSchedule,
) -> Surface:
    """Integrate the views' normals to a new surface, near the current one and within the visual hull.

    Args:
        views: normals and intrinsics.
        channels: `lookup_channels` of the views.
        poses: their poses.
        surface: current surface.
        depths: depth of the current surface in each view.
        distances: `mask_distances` of where the object may be in each view, in pixels.
        curves: mask contours of the views.
        pixel_weights: confidence of the single pixels that the surface follows; None: it follows means over views.
        level: the current level.
        schedule: options.
    """
    band = Band.from_sdf(surface.sdf, schedule.band_voxels)
    fused = fuse_normals(views, channels, poses, surface, depths, band.points, band.sdf)
    rims = [rim_points(surface, pixels, views.K[i], poses, i) for i, pixels in enumerate(curves)]
    near = 0.9 * schedule.band_voxels * surface.voxel
    zeros = np.concatenate([rim.points[np.abs(rim.sdf) < near] for rim in rims])
    votes = 1 if len(views) < 8 else 2
    floor = hull_distance(band.points, distances, views.K, poses.c2w(), votes) - level.slack_voxels * surface.voxel
    pixels = None if pixel_weights is None else PixelNormals.from_views(views, pixel_weights, poses, depths)
    return Surface(band_poisson(surface.sdf, band, *fused, zeros, floor, schedule.poisson, pixels))

# SPDX-License-Identifier: Apache-2.0
"""Surface detail that close-up views see: a finer grid over the cube around it, integrated at given poses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.geometry.hull import mask_distances
from pmni_nerfstudio.geometry.interpolation import grid_points, lookup_volume
from pmni_nerfstudio.registration.alternation import AlternationSchedule, Level, surface_step
from pmni_nerfstudio.registration.bundle_adjustment.normal_lookup import lookup_channels
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import contours, rim_points
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.pixel_normals import edge_weights
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_LEVELS = (129, 193)
"""Grid vertices per axis of the cube, coarse to fine."""
_ROUNDS = 2
"""Rounds of integration per level."""
_OUTER = 0.03
"""Share of the pixels, on each side along each axis, that may lie beyond the cube."""
_MARGIN = 1.18
"""Edge of the cube relative to the part that it is for; a field blends its border with the surface around it."""
_WORTHWHILE = 0.7
"""Largest voxel of the cube, in voxels of the surface, that is worth its time."""
_MAX_SHIFT_VOXELS = 2.0
"""Largest distance between the surface and its refinement along a pixel's ray, in voxels of the surface. What is farther is
the inside of the cube's faces, which close the refined mesh, or another part of the object."""


_RIM_SHARE = 0.9
"""Share of the cube in which contours count: beyond, their rays may touch the surface outside of the cube first."""


@dataclass(frozen=True, eq=False)
class Cube:
    """An axis-aligned cube of the unit-sphere world, and the local world in which it is [-1, 1]^3."""

    center: Float[np.ndarray, " 3"]
    half: float
    """Half of its edge."""

    def to_local(self, poses: Poses) -> Poses:
        """The same cameras in the local world."""
        return poses.transformed(1 / self.half, np.eye(3), -self.center / self.half)

    def to_world(self, poses: Poses) -> Poses:
        """Cameras of the local world in the unit-sphere world."""
        return poses.transformed(self.half, np.eye(3), self.center)


@dataclass(frozen=True, eq=False)
class CloseUpDetail:
    """Surface in a cube that close-ups see."""

    cube: Cube
    surface: Surface
    """The surface in the cube's local world."""


def close_up_detail(
    views: Views,
    poses: Poses,
    close_ups: Bool[np.ndarray, " n"],
    surface: Surface,
    schedule: AlternationSchedule,
) -> CloseUpDetail | None:
    """Integrate the normals of all views to a finer surface in the cube that close-ups see.

    Args:
        views: the views.
        poses: their poses.
        close_ups: which of the views are close-ups.
        surface: surface of the whole object, close to the result.
        schedule: options of the steps.

    Returns:
        None if there are no close-ups, or if the part that they see is so large that a finer grid does not fit it.
    """
    depths = surface.depths(views, poses)
    sizes = np.array([np.median(d[np.isfinite(d)]) if np.isfinite(d).any() else np.nan for d in depths]) / views.focal
    if not np.isfinite(sizes[close_ups]).any():
        return None
    sizes = np.where(np.isfinite(sizes), sizes, np.nanmax(sizes))
    low, high = _extent(views, poses, depths, np.flatnonzero(close_ups))
    center, half = 0.5 * (low + high), 0.5 * _MARGIN * float((high - low).max())
    if 2 * half / (_LEVELS[-1] - 1) > _WORTHWHILE * surface.voxel:
        return None
    cube = Cube(center, half)
    points = center + half * grid_points(_LEVELS[0]).view(-1, 3).numpy()
    start = lookup_volume(surface.lookups[:1], points)[:, 0] / half
    refined = Surface(start.reshape((_LEVELS[0],) * 3))
    if not refined.exists:
        return None
    # A pixel's normal is a mean over it: coarse pixels say less about the detail.
    shares = (sizes.min() / sizes) ** 2
    weights = [share * of_view for share, of_view in zip(shares, edge_weights(views, schedule.bundle.curvature))]
    channels, distances = lookup_channels(views, schedule.bundle.curvature), mask_distances(views.possible)
    curves = contours_in_cube(views, poses, surface, cube, schedule.bundle.contour_points)
    options, local = replace(schedule, poisson=schedule.detail_poisson), cube.to_local(poses)
    for resolution in _LEVELS:
        refined = refined.resampled(resolution).redistanced(schedule.band_voxels + 1)
        level = Level(resolution, _ROUNDS, pixel_normals="edges")
        for _ in range(_ROUNDS):
            seen = depths_in_cube(views, local, refined, depths / half, surface.voxel / half)
            refined = surface_step(views, channels, local, refined, seen, distances, curves, weights, level, options)
    return CloseUpDetail(cube, refined)


def contours_in_cube(
    views: Views, poses: Poses, surface: Surface, cube: Cube, max_points: int
) -> list[Float[np.ndarray, "p 2"]]:
    """Mask contours of all views, only where their rays touch the surface inside a cube.

    Args:
        views: the views.
        poses: their poses.
        surface: surface of the whole object.
        cube: the cube.
        max_points: largest number of points per view, of which those in the cube remain.
    """
    out = []
    for i, pixels in enumerate(contours(views, max_points)):
        rim = rim_points(surface, pixels, views.K[i], poses, i)
        inside = np.abs(rim.points - cube.center).max(axis=1) < _RIM_SHARE * cube.half
        out.append(pixels[inside & (np.abs(rim.sdf) < _MAX_SHIFT_VOXELS * surface.voxel)])
    return out


def _extent(
    views: Views, poses: Poses, depths: Float[np.ndarray, "n h w"], chosen: np.ndarray
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """Lowest and highest coordinates of what the chosen views see of the surface, but for some of the pixels."""
    points = np.concatenate([points for _, points, _ in _surface_points(views, poses, depths, chosen)])
    return np.quantile(points, _OUTER, axis=0), np.quantile(points, 1 - _OUTER, axis=0)


def depths_in_cube(
    views: Views, poses: Poses, refined: Surface, coarse: Float[np.ndarray, "n h w"], tolerance_voxel: float
) -> Float[np.ndarray, "n h w"]:
    """Depths of the refined surface in each view, infinite where the object's surface lies outside the cube [-1, 1]^3."""
    depths = refined.depths(views, poses)
    with np.errstate(invalid="ignore"):
        depths[~(np.abs(depths - coarse) < _MAX_SHIFT_VOXELS * tolerance_voxel)] = np.inf
    for i, points, pixels in _surface_points(views, poses, depths, np.arange(len(views))):
        outside = np.abs(points).max(axis=1) > 1 - refined.voxel
        depths[i][tuple(pixels[outside].T)] = np.inf
    return depths


def _surface_points(
    views: Views, poses: Poses, depths: Float[np.ndarray, "n h w"], chosen: np.ndarray
) -> Iterator[tuple[int, Float[np.ndarray, "p 3"], np.ndarray]]:
    """Each chosen view's index, the world points of its pixels with a depth, and the rows and columns of these."""
    for i in chosen:
        pixels = np.argwhere(np.isfinite(depths[i]))
        camera = pixel_directions(views.K[i], pixels[:, ::-1]) * depths[i][tuple(pixels.T)][:, None]
        yield int(i), (camera - poses.t[i]) @ poses.R[i], pixels

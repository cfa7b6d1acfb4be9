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
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import contours
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.pixel_normals import edge_weights
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

FINER = 0.6
"""A view is a close-up if its pixels are smaller than this share of the coarsest view's, on the object."""
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


@dataclass(frozen=True, eq=False)
class CloseUpDetail:
    """Signed distances on a grid over a cube of the unit-sphere world."""

    center: Float[np.ndarray, " 3"]
    """Center of the cube."""
    half: float
    """Half of its edge."""
    sdf: Float[np.ndarray, "n n n"]
    """Signed distances at the vertices, world units; corner vertices at the cube's corners, 'ij' = x, y, z."""


def are_close_ups(pixel_sizes: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Views whose pixels are far smaller on the object than those of the coarsest view."""
    return pixel_sizes < FINER * pixel_sizes.max()


def close_up_detail(
    views: Views, poses: Poses, surface: Surface, schedule: AlternationSchedule
) -> CloseUpDetail | None:
    """Integrate the normals of all views to a finer surface in the cube that close-ups see.

    Args:
        views: the views.
        poses: their poses.
        surface: surface of the whole object, close to the result.
        schedule: options of the steps.

    Returns:
        None if there are no close-ups, or if the part that they see is so large that a finer grid does not fit it.
    """
    depths = surface.depths(views, poses)
    sizes = np.array([np.median(d[np.isfinite(d)]) if np.isfinite(d).any() else np.nan for d in depths]) / views.focal
    if not np.isfinite(sizes).any():
        return None
    sizes = np.where(np.isfinite(sizes), sizes, np.nanmax(sizes))
    fine = are_close_ups(sizes)
    if not fine.any():
        return None
    low, high = _extent(views, poses, depths, np.flatnonzero(fine))
    center, half = 0.5 * (low + high), 0.5 * _MARGIN * float((high - low).max())
    if 2 * half / (_LEVELS[-1] - 1) > _WORTHWHILE * surface.voxel:
        return None
    # Everything happens in the world in which the cube is [-1, 1]^3.
    local = poses.transformed(1 / half, np.eye(3), -center / half)
    channels = lookup_channels(views, schedule.bundle.curvature)
    # A pixel's normal is a mean over it: coarse pixels say less about the detail.
    shares = (sizes.min() / sizes) ** 2
    weights = [share * of_view for share, of_view in zip(shares, edge_weights(views, schedule.bundle.curvature))]
    distances, curves = mask_distances(views.possible), contours(views, schedule.bundle.contour_points)
    options = replace(schedule, poisson=schedule.detail_poisson)
    points = grid_points(_LEVELS[0]).view(-1, 3).numpy()
    start = lookup_volume(surface.lookups[:1], center + half * points)[:, 0] / half
    refined = Surface(start.reshape((_LEVELS[0],) * 3))
    if not refined.exists:
        return None
    for resolution in _LEVELS:
        refined = refined.resampled(resolution).redistanced(schedule.band_voxels + 1)
        level = Level(resolution, _ROUNDS, pixel_normals="edges")
        for _ in range(_ROUNDS):
            seen = _depths_in_cube(views, local, refined, depths / half, surface.voxel / half)
            refined = surface_step(views, channels, local, refined, seen, distances, curves, weights, level, options)
    return CloseUpDetail(center, half, (half * refined.sdf).astype(np.float32))


def _extent(
    views: Views, poses: Poses, depths: Float[np.ndarray, "n h w"], chosen: np.ndarray
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """Lowest and highest coordinates of what the chosen views see of the surface, but for some of the pixels."""
    points = np.concatenate([points for _, points, _ in _surface_points(views, poses, depths, chosen)])
    return np.quantile(points, _OUTER, axis=0), np.quantile(points, 1 - _OUTER, axis=0)


def _depths_in_cube(
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

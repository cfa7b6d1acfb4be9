# SPDX-License-Identifier: Apache-2.0
"""Relocalization of outlier views: a global search for their poses against the surface that the other views made."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.geometry.object_sphere import centroid_rays
from pmni_nerfstudio.geometry.sim3 import rotation_grid, separated
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleOptions, BundleProblem
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import contours
from pmni_nerfstudio.registration.confidence import inlier_threshold_deg, view_agreement
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_ROTATIONS = 1500
"""Rotations that are searched, about 16 degrees from one to the next."""
_CANDIDATES = 6
"""Best rotations of the search, which are refined."""
_PIXELS = 600
"""Approximate number of pixels about the object that a rotation is scored by."""
_MARGIN = 0.2
"""Margin about the mask that is searched, as a fraction of its longer side."""
_PLACING_STEP = 2
"""Further reduction of the resolution for placing candidates by their silhouettes."""
_NEIGHBORHOODS = ((30, 8.0), (12, 4.0))
"""Numbers of the best rotations around which more are searched, and by which angle these are turned, in degrees: fine
details of the normals agree only within a few degrees of the right rotation."""
_DIRECTIONS = np.array([d for d in itertools.product((-1.0, 0.0, 1.0), repeat=3) if any(d)])
"""Rotation vectors of the rotations around one: along the axes, and the diagonals of faces and of the cube."""
_MAX_DEPTH_FACTOR = 1.4
"""Largest factor by which a candidate's depth is changed so that its silhouette has the area of the mask."""
_SEPARATION_DEG = 12.0
"""Smallest angle between two rotations that are refined."""
_CRITERIA = Criteria(max_iterations=10, initial_damping=1e-3, damping_floor=1e-9, relative_decrease=1e-3)


def relocalize(
    views: Views, poses: Poses, outliers: Bool[np.ndarray, " n"], surface: Surface, options: BundleOptions, seed: int
) -> Poses:
    """Replace the poses of all outlier views by those that agree best with a surface.

    Args:
        views: all views.
        poses: poses of all views; those of the inliers stay.
        outliers: views to relocalize.
        surface: surface made from the inliers.
        options: options of the refinement.
        seed: seed of the surface points.
    """
    inliers = list(np.flatnonzero(~outliers))
    medians = view_agreement(views.subset(inliers), poses.subset(np.array(inliers)), surface).median_deg
    for view in np.flatnonzero(outliers):
        poses = relocalize_view(views, poses, int(view), surface, inliers, inlier_threshold_deg(medians), options, seed)
    return poses


def relocalize_view(
    views: Views,
    poses: Poses,
    view: int,
    surface: Surface,
    inliers: list[int],
    threshold_deg: float,
    options: BundleOptions,
    seed: int,
) -> Poses:
    """Replace the pose of one view by the one that agrees best with a surface.

    Rotations spread over SO(3) are scored at low resolution by the view's normals and mask. The best ones and the
    current pose are refined against the surface's normals and the silhouette, and the most confident result is kept.
    The inlier threshold is that of the inlier views: three times the view's own median angle is large at a wrong pose.
    """
    one = views.subset([view])
    depth = float(np.median(poses.t[inliers, 2]))
    shift = depth * centroid_rays(one.K, one.masks)[0]
    searched = _cropped(one)
    grid = np.concatenate([poses.R[view][None], rotation_grid(_ROTATIONS)])
    placed, scores = _scored(searched, grid, shift, surface)
    for count, angle_deg in _NEIGHBORHOODS:
        chosen = separated(placed.R, scores, _SEPARATION_DEG, count)
        near = Rotation.from_rotvec(np.deg2rad(angle_deg) * _DIRECTIONS).as_matrix()
        turned = (near[None] @ placed.R[chosen][:, None]).reshape(-1, 3, 3)
        around, around_scores = _scored(searched, turned, shift, surface)
        placed = Poses(np.concatenate([placed.R[chosen], around.R]), np.concatenate([placed.t[chosen], around.t]))
        scores = np.concatenate([scores[chosen], around_scores])
    candidates = [poses.subset([view])]
    candidates += [placed.subset([k]) for k in separated(placed.R, scores, _SEPARATION_DEG, _CANDIDATES)]
    refined = [refine_pose(one, pose, surface, options, seed) for pose in candidates]
    best = min(refined, key=lambda pose: view_agreement(one, pose, surface, threshold_deg).cost)
    return poses.replaced([view], best)


def _cropped(one: Views) -> Views:
    """A view cut to its mask with a margin on all sides."""
    y, x = np.nonzero(one.masks[0])
    margin = int(_MARGIN * max(np.ptp(y), np.ptp(x))) + 1
    top, left = max(int(y.min()) - margin, 0), max(int(x.min()) - margin, 0)
    box = (slice(None), slice(top, int(y.max()) + margin + 1), slice(left, int(x.max()) + margin + 1))
    K = one.K.copy()
    K[:, :2, 2] -= (left, top)
    unknown = None if one.unknown is None else one.unknown[box]
    return Views(one.names, one.normals[box], one.masks[box], K, unknown=unknown)


def _scored(
    one: Views, rotations: Float[np.ndarray, "c 3 3"], shift: Float[np.ndarray, " 3"], surface: Surface
) -> tuple[Poses, Float[np.ndarray, " c"]]:
    """Poses with the given rotations, placed by their silhouettes, and their scores."""
    placed = _placed_by_silhouette(one, Poses(rotations, np.repeat(shift[None], len(rotations), axis=0)), surface)
    return placed, coarse_scores(one, placed, surface)


def _placed_by_silhouette(one: Views, candidates: Poses, surface: Surface) -> Poses:
    """Candidates moved so that their rendered silhouettes have the mask's centroid and area.

    The world's origin is rarely at the centroid of a silhouette, and normals that are compared a few pixels beside their
    place differ at the right rotation more than smooth ones do at a wrong rotation.
    """
    step = _PLACING_STEP * _step(one)
    copies = _copies(one.strided(step), len(candidates))
    visible = np.isfinite(surface.depths(copies, candidates, np.ones(copies.masks.shape, dtype=bool)))
    area = visible.sum(axis=(1, 2))
    factor = np.sqrt(area / copies.masks[0].sum()).clip(1 / _MAX_DEPTH_FACTOR, _MAX_DEPTH_FACTOR)
    y, x = np.mgrid[: copies.height, : copies.width]
    centroid = np.stack([(visible * axis).sum(axis=(1, 2)) for axis in (x, y)], axis=1) / np.maximum(area, 1)[:, None]
    offset = centroid_rays(copies.K[:1], copies.masks[:1]) - pixel_directions(copies.K[0], centroid)
    t = candidates.t * factor[:, None]
    t = np.where((area > 0)[:, None], t + offset * t[:, 2:], candidates.t)
    return Poses(candidates.R, t)


def _step(one: Views) -> int:
    """Reduction of the resolution to about `_PIXELS` pixels."""
    return max(1, int(np.sqrt(one.height * one.width / _PIXELS)))


def _copies(one: Views, count: int) -> Views:
    """A view repeated without copies of its maps."""
    return Views(
        one.names * count,
        np.broadcast_to(one.normals, (count, *one.normals.shape[1:])),
        np.broadcast_to(one.masks, (count, *one.masks.shape[1:])),
        np.broadcast_to(one.K, (count, 3, 3)),
    )


def coarse_scores(one: Views, candidates: Poses, surface: Surface) -> Float[np.ndarray, " c"]:
    """Disagreement of one view with the surface at each candidate pose; lower is better.

    The squared chord between normals, summed over the valid pixels in the rendered silhouette, plus 2 for each
    pixel that only one of them has; per pixel of the mask.
    """
    small = one.downsampled(_step(one))
    copies = _copies(small, len(candidates))
    depths = surface.depths(copies, candidates, np.ones(copies.masks.shape, dtype=bool))
    visible, mask = np.isfinite(depths), copies.masks
    k, y, x = np.nonzero(visible & small.valid)
    camera = pixel_directions(small.K[0], np.stack([x, y], axis=1)) * depths[k, y, x, None]
    world = np.einsum("pji,pj->pi", candidates.R[k], camera - candidates.t[k])
    normals = np.einsum("pij,pj->pi", candidates.R[k], surface.normals_at(world))
    chord = ((normals - small.normals[0, y, x]) ** 2).sum(axis=1)
    differs = visible != mask
    if small.unknown is not None:
        differs &= ~small.unknown
    total = np.bincount(k, weights=chord, minlength=len(candidates)) + 2.0 * differs.sum(axis=(1, 2))
    return total / small.masks.sum()


def refine_pose(one: Views, pose: Poses, surface: Surface, options: BundleOptions, seed: int) -> Poses:
    """Fit the pose of one view to the surface, first with blurred normals and a wide Huber kernel."""
    footprint = float(pose.t[0, 2] / one.focal[0])
    curves = contours(one, options.contour_points)
    for blur, huber in ((0.033, 0.3), (0.0, 0.1)):
        blurred = one.blurred(blur / footprint)
        stage = replace(options, huber=huber, points=2000)
        for _ in range(2):
            depths = surface.depths(one, pose)
            if not np.isfinite(depths).any():
                return pose
            rng = np.random.default_rng(seed)
            problem = BundleProblem(blurred, surface, pose, depths, curves, stage, rng, fixed_normals=True)
            pose = solve(problem, pose, _CRITERIA).state
    return pose

# SPDX-License-Identifier: Apache-2.0
"""Relocalization of outlier views: a global search for their poses against the surface that the other views made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.geometry.object_sphere import centroid_rays
from pmni_nerfstudio.geometry.sim3 import rotation_grid
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleOptions, BundleProblem
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import contours
from pmni_nerfstudio.registration.confidence import view_agreement
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_ROTATIONS = 1500
"""Rotations that are searched, about 16 degrees from one to the next."""
_CANDIDATES = 6
"""Best rotations of the search, which are refined."""
_PIXELS = 600
"""Approximate number of pixels that a rotation is scored by."""
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
    for view in np.flatnonzero(outliers):
        poses = relocalize_view(views, poses, int(view), surface, inliers, options, seed)
    return poses


def relocalize_view(
    views: Views, poses: Poses, view: int, surface: Surface, inliers: list[int], options: BundleOptions, seed: int
) -> Poses:
    """Replace the pose of one view by the one that agrees best with a surface.

    Rotations spread over SO(3) are scored at low resolution by the view's normals and mask. The best ones and the
    current pose are refined against the surface's normals and the silhouette, and the most confident result is kept.
    """
    one = views.subset([view])
    depth = float(np.median(poses.t[inliers, 2]))
    shift = depth * centroid_rays(one.K, one.masks)[0]
    grid = np.concatenate([poses.R[view][None], rotation_grid(_ROTATIONS)])
    scores = _coarse_scores(one, Poses(grid, np.repeat(shift[None], len(grid), axis=0)), surface)
    candidates = [poses.subset([view])]
    candidates += [Poses(grid[[k]], shift[None]) for k in np.argsort(scores, kind="stable")[:_CANDIDATES]]
    refined = [_refine(one, pose, surface, options, seed) for pose in candidates]
    best = min(refined, key=lambda pose: view_agreement(one, pose, surface).cost)
    return poses.replaced([view], best)


def _coarse_scores(one: Views, candidates: Poses, surface: Surface) -> Float[np.ndarray, " c"]:
    """Disagreement of one view with the surface at each candidate pose; lower is better.

    The squared chord between normals, summed over the valid pixels in the rendered silhouette, plus 2 for each
    pixel that only one of them has; per pixel of the mask.
    """
    step = max(1, int(np.sqrt(one.height * one.width / _PIXELS)))
    small = one.downsampled(step)
    count = len(candidates)
    copies = Views(
        small.names * count,
        np.broadcast_to(small.normals, (count, *small.normals.shape[1:])),
        np.broadcast_to(small.masks, (count, *small.masks.shape[1:])),
        np.broadcast_to(small.K, (count, 3, 3)),
    )
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
    total = np.bincount(k, weights=chord, minlength=count) + 2.0 * differs.sum(axis=(1, 2))
    return total / small.masks.sum()


def _refine(one: Views, pose: Poses, surface: Surface, options: BundleOptions, seed: int) -> Poses:
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

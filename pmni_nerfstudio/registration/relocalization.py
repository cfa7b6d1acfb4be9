# SPDX-License-Identifier: Apache-2.0
"""A lost view is tried again: against the surface that the others made, from starts all round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pmni_nerfstudio.geometry.sim3 import rotation_grid
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleOptions, BundleProblem
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import contours
from pmni_nerfstudio.registration.confidence import judge
from pmni_nerfstudio.registration.framing import centroid_rays
from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, solve
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_STARTS = 1500
"""Rotations tried: about 16 degrees from one to the next."""
_FINALISTS = 6
_PIXELS = 600
"""Of the view that a start is judged by, about."""
_CRITERIA = Criteria(max_iterations=10, initial_damping=1e-3, damping_floor=1e-9, relative_decrease=1e-3)


def relocate(
    views: Views, poses: Poses, view: int, surface: Surface, others: list[int], options: BundleOptions, seed: int
) -> Poses:
    """Poses with one view's replaced by the best that is found for it against a surface.

    Rotations from all over are compared with the view's normals and mask, coarsely; the best are refined against the
    surface's own normals and the outline, at two blurs, and the one that agrees best is taken, or the pose it had.

    Args:
        views: all of them.
        poses: of the views; those of the others are believed.
        view: the one to place.
        surface: made without it.
        others: views that are believed.
        options: of the refinement.
        seed: of the surface points.
    """
    one = views.subset([view])
    depth = float(np.median(poses.t[others, 2]))
    shift = depth * centroid_rays(one)[0]
    grid = np.concatenate([poses.R[view][None], rotation_grid(_STARTS)])
    scores = _coarse_scores(one, Poses(grid, np.repeat(shift[None], len(grid), axis=0)), surface)
    candidates = [poses.subset([view])]
    candidates += [Poses(grid[[k]], shift[None]) for k in np.argsort(scores, kind="stable")[:_FINALISTS]]
    refined = [_refine(one, pose, surface, options, seed) for pose in candidates]
    best = min(refined, key=lambda pose: judge(one, pose, surface).cost)
    R, t = poses.R.copy(), poses.t.copy()
    R[view], t[view] = best.R[0], best.t[0]
    return Poses(R, t)


def _coarse_scores(one: Views, starts: Poses, surface: Surface) -> np.ndarray:
    """Of each start: mean over pixels of the normals' squared chord, and 2 where only mask or only surface is."""
    step = max(1, int(np.sqrt(one.height * one.width / _PIXELS)))
    small = one.smaller(step)
    count = len(starts)
    copies = Views(
        small.names * count,
        np.broadcast_to(small.normals, (count, *small.normals.shape[1:])),
        np.broadcast_to(small.masks, (count, *small.masks.shape[1:])),
        np.broadcast_to(small.K, (count, 3, 3)),
    )
    depths = surface.depths(copies, starts, np.ones(copies.masks.shape, dtype=bool))
    seen, mask = np.isfinite(depths), copies.masks
    k, y, x = np.nonzero(seen & mask)
    camera = np.stack([x, y, np.ones(len(x))], axis=1) @ np.linalg.inv(small.K[0]).T * depths[k, y, x, None]
    world = np.einsum("pji,pj->pi", starts.R[k], camera - starts.t[k])
    normals = np.einsum("pij,pj->pi", starts.R[k], surface.normals_at(world))
    chord = ((normals - small.normals[0, y, x]) ** 2).sum(axis=1)
    total = np.bincount(k, weights=chord, minlength=count) + 2.0 * (seen != mask).sum(axis=(1, 2))
    return total / small.masks.sum()


def _refine(one: Views, pose: Poses, surface: Surface, options: BundleOptions, seed: int) -> Poses:
    """Fit one view to the surface, blurred first."""
    footprint = float(pose.t[0, 2] / one.focal[0])
    outline = contours(one, options.contour_points)
    for blur, huber in ((0.033, 0.3), (0.0, 0.1)):
        blurred = one.blurred(blur / footprint)
        for _ in range(2):
            depths = surface.depths(one, pose)
            if not np.isfinite(depths).any():
                return pose
            problem = BundleProblem(
                blurred,
                surface,
                pose,
                depths,
                outline,
                replace(options, huber=huber, points=2000),
                np.random.default_rng(seed),
                anchored=True,
            )
            pose = solve(problem, pose, _CRITERIA).state
    return pose

# SPDX-License-Identifier: Apache-2.0
"""Faults of a few percent in single masks of exact cameras: a piece too many or missing, found by the other silhouettes.

Each ray through a mask has to have a point inside all other silhouettes. If a mask has a piece too many, rays through the
piece have none; if a piece is missing, rays of many other views through it have points that only this mask excludes. All
rays that miss are explained by as few views as possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from pmni_nerfstudio.geometry.silhouette_coherence import PosedSilhouette, evenly_spaced, object_center, sample_reach

_RAYS_PER_VIEW = 1200
"""Rays per view, on a regular grid of its pixels."""
_MIN_SHARE = 0.008
"""Least share of a view's rays that a piece has."""
_MIN_RAYS = 4
_TYPICAL = 4.0
"""Pieces have to be larger than those of typical views by this factor, which poses that are not exact cause everywhere."""


@dataclass(frozen=True)
class MaskFault:
    """A mask that does not fit the others in one place."""

    view: int
    is_too_large: bool
    """Whether a piece of the mask is too many; otherwise one is missing."""
    share: float
    """Size of the piece, as a share of the mask in which it is seen best."""


def find_mask_faults(
    masks: Sequence[Bool[np.ndarray, "h w"]],
    K: Float[np.ndarray, "n 3 3"],
    c2w: Float[np.ndarray, "n 4 4"],
    possible: Sequence[Bool[np.ndarray, "h w"]] | None = None,
) -> list[MaskFault]:
    """Find masks with a wrong piece, the worst first; at most a third of those that are compared.

    Args:
        masks: silhouette of each view, not empty; at least three.
        K: intrinsics in pixels, pixel centers at integers.
        c2w: rigid camera-to-world poses, OpenCV axes.
        possible: where the object may be in each view, if something else stands in front of it in places.
    """
    chosen = evenly_spaced(len(masks))
    views = [PosedSilhouette(masks[i], None, K[i], c2w[i], None if possible is None else possible[i]) for i in chosen]
    center = object_center(views)
    reach = sample_reach(views, center)
    grids, blamed, totals = map(list, zip(*(_missed_rays(i, views, center, reach[i]) for i in range(len(views)))))
    everything = range(len(views))
    faults: list[MaskFault] = []
    while len(faults) < max(1, len(views) // 3):
        own = np.array([_share(grid, total) for grid, total in zip(grids, totals)])
        by_view = np.array([[_share(grids[i] & blamed[i][v], totals[i]) for i in everything] for v in everything])
        limit = max(_MIN_SHARE, _TYPICAL * float(np.median(own)))
        rays_by_view = np.array([[(grids[i] & blamed[i][v]).sum() / totals[i] for i in everything] for v in everything])
        # A missing piece is seen by more than one view, some of them at a low angle, and only this mask contradicts them.
        is_missing = (by_view > limit).any(axis=1) & ((rays_by_view > 0.4 * limit).sum(axis=1) >= 2)
        missing = np.where(is_missing, by_view.sum(axis=1), 0)
        large = np.where(own > limit, own, 0)
        if max(missing.max(), large.max()) == 0:
            break
        if missing.max() >= large.max():
            v = int(missing.argmax())
            faults.append(MaskFault(chosen[v], False, float(by_view[v].max())))
            grids = [grid & ~blame[v] for grid, blame in zip(grids, blamed)]
        else:
            v = int(large.argmax())
            faults.append(MaskFault(chosen[v], True, float(own[v])))
            grids[v] = np.zeros_like(grids[v])
    return faults


def _missed_rays(
    index: int, views: Sequence[PosedSilhouette], center: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Rays of a view without a point inside all silhouettes, as a grid, and for each other view those that it alone causes.

    Returns:
        (h, w) bool, (n, h, w) bool, and the number of all rays of the mask.
    """
    view = views[index]
    step = max(1, round(float(np.sqrt(view.mask.sum() / _RAYS_PER_VIEW))))
    on_mask = view.mask[::step, ::step]
    rows, columns = np.nonzero(on_mask)
    points, in_front = view.points(columns * step, rows * step, center, reach)
    alive = np.flatnonzero(in_front.ravel())
    points, excluded, by = points.reshape(-1, 3), np.zeros(in_front.size, dtype=np.int8), np.full(in_front.size, -1)
    for j, other in enumerate(views):
        if j == index:
            continue
        outside = alive[~other.contains(points[alive])]
        excluded[outside] += 1
        by[outside] = j
        alive = alive[excluded[alive] < 2]
    shape = in_front.shape
    free = np.zeros(in_front.size, dtype=bool)
    free[alive] = excluded[alive] == 0
    missed = ~free.reshape(shape).any(axis=1)
    alone = np.zeros((len(views), len(rows)), dtype=bool)
    once = alive[excluded[alive] == 1]
    alone[by[once], once // shape[1]] = True
    grid = np.zeros(on_mask.shape, dtype=bool)
    grid[rows, columns] = missed
    blame = np.zeros((len(views), *on_mask.shape), dtype=bool)
    blame[:, rows, columns] = alone & missed
    return grid, blame, len(rows)


def _share(grid: Bool[np.ndarray, "h w"], total: int) -> float:
    """Size of the largest piece of a grid as a share of a mask's rays; 0 if it is too small to tell."""
    piece = _piece(grid)
    return piece / total if piece >= _MIN_RAYS else 0.0


def _piece(grid: Bool[np.ndarray, "h w"]) -> int:
    """Number of rays of the largest connected piece of a grid that is more than a rim one ray wide."""
    if not grid.any():
        return 0
    opened = ndimage.binary_opening(grid, np.ones((2, 2)))
    labels = np.zeros(grid.shape, dtype=np.int32)
    return int(np.bincount(labels.ravel())[1:].max()) if ndimage.label(opened, output=labels) else 0

# SPDX-License-Identifier: Apache-2.0
"""Consistency of each view's silhouette with those of the other views, to name views whose mask or pose is wrong.

A view is consistent if the rays through its silhouette pass through the visual hull of the other silhouettes, and if the
rays of the other views still pass through their hull once this silhouette is added. A view that is wrong makes the others
look wrong as well; such views are therefore set aside, the one that explains most misses first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.geometry.silhouette_coherence import MAX_VIEWS, PosedSilhouette, object_center, sample_reach

EXACT = 0.97
"""Least score of a typical view of exact cameras and masks."""
_MAX_BELOW_MEDIAN = 0.07
"""Scores lower than the median by more than this are outliers. Exact laser scans and photographs differ by 0.06."""
_MIN_GAIN = 0.015
"""Misses per ray of the other views that a view has to explain to be set aside."""


@dataclass(frozen=True, eq=False)
class Consistency:
    """Agreement of a view's silhouette with those of the other views."""

    own_rays: float
    """Share of its rays that pass through the hull of the others, 0 to 1; low if the mask is too large."""
    other_rays: float
    """Share of the other views' rays through their hull that it does not cut off, 0 to 1; low if the mask is too small."""
    pixels: np.ndarray
    """Pixels (R, 2) of the mask, x and y, through which its rays were sampled."""
    is_consistent: np.ndarray
    """(R,) bool, whether the ray of such a pixel passes through the hull of the others."""

    @property
    def score(self) -> float:
        """The smaller of both shares."""
        return min(self.own_rays, self.other_rays)


def measure_consistency(
    masks: Sequence[Bool[np.ndarray, "h w"]],
    K: Float[np.ndarray, "n 3 3"],
    c2w: Float[np.ndarray, "n 4 4"],
    possible: Sequence[Bool[np.ndarray, "h w"]] | None = None,
) -> list[Consistency]:
    """Measure the consistency of each silhouette.

    Args:
        masks: silhouette of each view, not empty; at least two.
        K: intrinsics in pixels, pixel centers at integers.
        c2w: rigid camera-to-world poses, OpenCV axes.
        possible: where the object may be in each view, if something else stands in front of it in places.
    """
    # Groups of views all around the object, since the time grows with the square of their size.
    num_groups = -(-len(masks) // MAX_VIEWS)
    found: dict[int, Consistency] = {}
    for first in range(num_groups):
        group = range(first, len(masks), num_groups)
        reach = None if possible is None else [possible[i] for i in group]
        found |= zip(group, _measure_group([masks[i] for i in group], K[list(group)], c2w[list(group)], reach))
    return [found[i] for i in range(len(masks))]


def inconsistent_views(scores: Float[np.ndarray, " n"]) -> list[int]:
    """Views whose score is an outlier among the others', the worst first."""
    limit = min(EXACT, float(np.median(scores)) - _MAX_BELOW_MEDIAN)
    return [int(view) for view in np.argsort(scores, kind="stable") if scores[view] < limit]


def _measure_group(
    masks: Sequence[Bool[np.ndarray, "h w"]],
    K: Float[np.ndarray, "n 3 3"],
    c2w: Float[np.ndarray, "n 4 4"],
    possible: Sequence[Bool[np.ndarray, "h w"]] | None,
) -> list[Consistency]:
    reach = [None] * len(masks) if possible is None else possible
    views = [PosedSilhouette(mask, None, k, pose, r) for mask, k, pose, r in zip(masks, K, c2w, reach)]
    center = object_center(views)
    misses = [_misses(*of_view, views, center) for of_view in zip(views, sample_reach(views, center))]
    agreeing = _agreeing_views(misses)
    found = []
    for v, view in enumerate(views):
        others = [i for i in agreeing if i != v]
        own = _is_hit(misses[v], others)
        before = [_is_hit(misses[i], [j for j in others if j != i]) for i in others]
        after = [_is_hit(misses[i], [v, *(j for j in others if j != i)]) for i in others]
        total = sum(int(hit.sum()) for hit in before)
        other_rays = sum(int(hit.sum()) for hit in after) / total if total else 0.0
        pixels = view.step * np.stack(view.sampled_pixels(), axis=-1)
        found.append(Consistency(float(own.mean()), other_rays, pixels, own))
    return found


def _misses(view: PosedSilhouette, reach: float, views: Sequence[PosedSilhouette], center: np.ndarray) -> np.ndarray:
    """(n, R, S) bool: whether a point on a ray of one view is outside the silhouette of each view, its own included.

    Points behind the view's own camera are outside all silhouettes.
    """
    points, _, in_front = view.sample(center, reach)
    return np.stack([~in_front if other is view else ~(in_front & other.contains(points)) for other in views])


def _is_hit(misses: np.ndarray, views: Sequence[int]) -> np.ndarray:
    """(R,) bool: whether a ray has a point inside the silhouettes of all given views."""
    return ~misses[list(views)].any(axis=0).all(axis=-1)


def _agreeing_views(misses: Sequence[np.ndarray]) -> list[int]:
    """Views left, always more than half, after those that explain most misses of the others were set aside one by one."""
    agreeing = list(range(len(misses)))
    counts = [miss.sum(axis=0, dtype=np.int16) for miss in misses]
    while 2 * (len(agreeing) - 1) > len(misses):
        gains = []
        for v in agreeing:
            others = [i for i in agreeing if i != v]
            saved = [counts[i].min(axis=-1) - (counts[i] - misses[i][v]).min(axis=-1) for i in others]
            gains.append(float(np.concatenate(saved).mean()))
        worst = int(np.argmax(gains))
        if gains[worst] < _MIN_GAIN:
            break
        counts = [count - miss[agreeing[worst]] for count, miss in zip(counts, misses)]
        del agreeing[worst]
    return agreeing

# SPDX-License-Identifier: Apache-2.0
"""Confidence of registered poses: how well each view agrees with the surface, and which views are outliers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_PIXELS = 10_000
"""Approximate number of pixels of a view that are compared."""
_MAX_INLIER_DEG = 30.0
"""Upper limit of the inlier threshold: a normal that is off by more never supports the surface."""
_MIN_RELATIVE_CONFIDENCE = 0.65
"""Confidence of an inlier view relative to the median view. Wrong views had 0.29 to 0.63 of it, right ones 0.82 and more."""
_MASK_ERROR_FACTOR, _MASK_ERROR_MARGIN = 3.0, 0.05
"""Limit of 1 - IoU for an inlier view: this many times the median view's, plus the margin. Right views had up to 2.7 times the
median's; views of a flat disc that faces the camera, turned by 160 degrees, 0.09 and 0.17 where the median was 0.013."""
_SUSPECT_FACTOR, _SUSPECT_MARGIN = 4.0, 0.01
"""Limit of 1 - IoU, likewise, above which a view's pose is searched again; the view stays included if nothing better is found.
On finished surfaces right views had up to 2.3 times the median's; one that was turned by 179 degrees about a disc 6 times."""
_MIN_PLAUSIBLE_CONFIDENCE = 0.6
"""Confidence on its own of a view that the surface was made without, relative to the median inlier. Right views, two to six
degrees off where the surface was wrong for want of them, had 0.62 to 0.98 of it."""


@dataclass(frozen=True, eq=False)
class ViewAgreement:
    """Agreement of n views with a surface."""

    residual_deg: Float[np.ndarray, " n"]
    """Mean angle between observed and rendered normals where both exist, in degrees; 180 if the surface is not visible."""
    median_deg: Float[np.ndarray, " n"]
    """Median of the same angles."""
    inlier_ratio: Float[np.ndarray, " n"]
    """Fraction of the pixels with normals where the surface is visible and its normal within three times the median angle of
    all views, but at least 5 and at most 30 degrees."""
    iou: Float[np.ndarray, " n"]
    """Intersection over union of mask and rendered silhouette, without unknown pixels."""

    @property
    def confidence(self) -> Float[np.ndarray, " n"]:
        """Confidence of each view's pose, 0 to 1: inlier ratio times mask IoU."""
        return self.inlier_ratio * self.iou

    def outliers(self) -> Bool[np.ndarray, " n"]:
        """Views that agree far less with the surface than the median view."""
        large_error = self.median_deg > 3 * np.median(self.median_deg) + 3.0
        large_error |= self._mask_error_exceeds(_MASK_ERROR_FACTOR, _MASK_ERROR_MARGIN)
        return large_error | (self.confidence < _MIN_RELATIVE_CONFIDENCE * np.median(self.confidence))

    def suspects(self) -> Bool[np.ndarray, " n"]:
        """Outliers, and views whose silhouettes fit much worse than the median view's."""
        return self.outliers() | self._mask_error_exceeds(_SUSPECT_FACTOR, _SUSPECT_MARGIN)

    def _mask_error_exceeds(self, factor: float, margin: float) -> Bool[np.ndarray, " n"]:
        mask_error = 1 - self.iou
        return mask_error > factor * np.median(mask_error) + margin

    @property
    def cost(self) -> float:
        """One minus the mean confidence; lower is better."""
        return float(1 - self.confidence.mean())


def inlier_threshold_deg(median_deg: Float[np.ndarray, " n"]) -> float:
    """Largest angle of an inlier pixel, given the median angle of every view."""
    return min(max(3 * float(np.median(median_deg)), 5.0), _MAX_INLIER_DEG)


def view_agreement(views: Views, poses: Poses, surface: Surface, threshold_deg: float | None = None) -> ViewAgreement:
    """Compare every view's normals and mask with the surface rendered at its pose.

    Args:
        views: views to compare.
        poses: their poses.
        surface: the surface.
        threshold_deg: largest angle of an inlier pixel; None: that of these views.
    """
    step = max(1, int(np.sqrt(views.height * views.width / _PIXELS)))
    small = views.strided(step)
    depths = surface.depths(small, poses, np.ones(small.masks.shape, dtype=bool))
    visible = np.isfinite(depths)
    errors = [_errors_deg(small, poses, surface, depths, visible, i) for i in range(len(views))]
    medians = np.array([np.median(e) if len(e) else 180.0 for e in errors])
    threshold = inlier_threshold_deg(medians) if threshold_deg is None else threshold_deg
    areas = small.valid.sum(axis=(1, 2))
    # Where something else stands in front, the surface may be rendered or not.
    shown = visible if small.unknown is None else visible & ~small.unknown
    union = (shown | small.masks).sum(axis=(1, 2))
    return ViewAgreement(
        residual_deg=np.array([e.mean() if len(e) else 180.0 for e in errors]),
        median_deg=medians,
        inlier_ratio=np.array([(e < threshold).sum() for e in errors]) / np.maximum(areas, 1),
        iou=(visible & small.masks).sum(axis=(1, 2)) / np.maximum(union, 1),
    )


def plausible_views(
    views: Views, poses: Poses, surface: Surface, inliers: Bool[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Other views than the inliers that may fit the surface once it is made with them.

    A surface made without a view may be wrong where only that view sees it, and the view's pose with it. Therefore each
    view is judged by itself: its normals count as inliers up to three times its own median angle.
    """
    limit = _MIN_PLAUSIBLE_CONFIDENCE * float(np.median(view_agreement(views, poses, surface).confidence[inliers]))
    plausible = np.zeros(len(views), dtype=bool)
    for i in np.flatnonzero(~inliers):
        plausible[i] = view_agreement(views.subset([i]), poses.subset([i]), surface).confidence[0] >= limit
    return plausible


def rendered_normals(views: Views, poses: Poses, surface: Surface, view: int) -> Float[np.ndarray, "h w 3"]:
    """Normals of the surface as one view sees it, OpenCV camera axes; zero where the surface is not visible."""
    one, pose = views.subset([view]), poses.subset([view])
    depth = surface.depths(one, pose, np.ones_like(one.masks))
    y, x = np.nonzero(np.isfinite(depth[0]))
    out = np.zeros((views.height, views.width, 3))  # one view may have less padding
    out[y, x] = _normals_at(one, pose, surface, 0, np.stack([x, y], axis=1), depth[0, y, x])
    return out


def _normals_at(
    views: Views,
    poses: Poses,
    surface: Surface,
    view: int,
    pixels: Int[np.ndarray, "p 2"],
    depth: Float[np.ndarray, " p"],
) -> Float[np.ndarray, "p 3"]:
    """Normals of the surface, in camera axes, at pixels (x, y) of known depth."""
    camera = pixel_directions(views.K[view], pixels) * depth[:, None]
    world = (camera - poses.t[view]) @ poses.R[view]
    return surface.normals_at(world) @ poses.R[view].T


def _errors_deg(
    views: Views, poses: Poses, surface: Surface, depths: np.ndarray, visible: np.ndarray, view: int
) -> Float[np.ndarray, " p"]:
    """Angles between observed and rendered normals of one view, in degrees."""
    y, x = np.nonzero(views.valid[view] & visible[view])
    normals = _normals_at(views, poses, surface, view, np.stack([x, y], axis=1), depths[view, y, x])
    cosine = (normals * views.normals[view, y, x]).sum(axis=1)
    return np.rad2deg(np.arccos(cosine.clip(-1, 1)))

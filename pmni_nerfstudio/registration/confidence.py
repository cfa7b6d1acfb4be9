# SPDX-License-Identifier: Apache-2.0
"""How well each view agrees with a surface: the ground for trusting its pose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_PIXELS = 10_000
"""Of a view that are looked at, about."""
_LARGEST_INLIER_DEG = 30.0
"""However far off is usual: beyond it a normal says nothing for the surface."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """Figures of N views."""

    residual_deg: Float[np.ndarray, " n"]
    """Mean angle between observed and rendered normals where both are, degrees; 180 where the surface is not seen."""
    median_deg: Float[np.ndarray, " n"]
    """The median of the same."""
    inliers: Float[np.ndarray, " n"]
    """Share of the mask's pixels that show the surface with a normal within three times the usual angle,
    at least 5 and at most 30 degrees."""
    iou: Float[np.ndarray, " n"]
    """Overlap of mask and rendered silhouette, intersection over union."""

    @property
    def confidence(self) -> Float[np.ndarray, " n"]:
        """Of each view's pose, 0 to 1: inliers times the overlap."""
        return self.inliers * self.iou

    def doubtful(self) -> Bool[np.ndarray, " n"]:
        """Views that fit far worse than the others."""
        usual = np.median(self.median_deg)
        worse = self.median_deg > 3 * usual + 3.0
        return worse | (self.iou < 0.7 * np.median(self.iou)) | (self.inliers < 0.5 * np.median(self.inliers))

    @property
    def cost(self) -> float:
        """One figure for all views, lower is better: the mean lack of confidence."""
        return float(1 - self.confidence.mean())


def judge(views: Views, poses: Poses, surface: Surface) -> Judgement:
    """Compare every view with the surface as it would see it."""
    step = max(1, int(np.sqrt(views.height * views.width / _PIXELS)))
    small = views.every(step)
    everywhere = np.ones(small.masks.shape, dtype=bool)
    depths = surface.depths(small, poses, everywhere)
    seen = np.isfinite(depths)
    errors = [_errors_deg(small, poses, surface, depths, seen, i) for i in range(len(views))]
    medians = np.array([np.median(e) if len(e) else 180.0 for e in errors])
    agreeing = min(max(3 * float(np.median(medians)), 5.0), _LARGEST_INLIER_DEG)
    areas = small.masks.sum(axis=(1, 2))
    return Judgement(
        residual_deg=np.array([e.mean() if len(e) else 180.0 for e in errors]),
        median_deg=medians,
        inliers=np.array([(e < agreeing).sum() for e in errors]) / np.maximum(areas, 1),
        iou=(seen & small.masks).sum(axis=(1, 2)) / np.maximum((seen | small.masks).sum(axis=(1, 2)), 1),
    )


def rendered_normals(views: Views, poses: Poses, surface: Surface, view: int) -> Float[np.ndarray, "h w 3"]:
    """The surface's normals in one view's OpenCV camera axes; zero where the surface is not seen."""
    one, pose = views.subset([view]), poses.subset([view])
    depth = surface.depths(one, pose, np.ones_like(one.masks))
    y, x = np.nonzero(np.isfinite(depth[0]))
    out = np.zeros((*depth.shape[1:], 3))
    out[y, x] = _normals_at(one, pose, surface, 0, y, x, depth[0, y, x])
    return out


def _normals_at(
    views: Views, poses: Poses, surface: Surface, view: int, y: np.ndarray, x: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    camera = np.stack([x, y, np.ones(len(x))], axis=1) @ np.linalg.inv(views.K[view]).T * depth[:, None]
    world = (camera - poses.t[view]) @ poses.R[view]
    return surface.normals_at(world) @ poses.R[view].T


def _errors_deg(
    views: Views, poses: Poses, surface: Surface, depths: np.ndarray, seen: np.ndarray, view: int
) -> np.ndarray:
    y, x = np.nonzero(views.masks[view] & seen[view])
    normals = _normals_at(views, poses, surface, view, y, x, depths[view, y, x])
    cosine = (normals * views.normals[view, y, x]).sum(axis=1)
    return np.rad2deg(np.arccos(cosine.clip(-1, 1)))

# SPDX-License-Identifier: Apache-2.0
"""Holes in normal maps: pixels of the mask without a normal, such as shadows and highlights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from helpers.scenes import AnalyticScene
    from pmni_nerfstudio.registration.views import Views


def holes_of(masks: np.ndarray, share: float = 0.15, radius: tuple[float, float] = (3, 6), seed: int = 0) -> np.ndarray:
    """Holes (N, H, W) of at least a share of each mask: discs with random places and radii; some reach the contour."""
    rng = np.random.default_rng(seed)
    holes = np.zeros_like(masks)
    y, x = np.mgrid[: masks.shape[1], : masks.shape[2]]
    for hole, mask in zip(holes, masks):
        while hole.sum() < share * mask.sum():
            row, column = rng.permutation(np.argwhere(mask))[0]
            hole[mask & ((y - row) ** 2 + (x - column) ** 2 <= rng.uniform(*radius) ** 2)] = True
    return holes


def views_with_holes(views: Views, share: float = 0.2, radius: tuple[float, float] = (4, 9)) -> Views:
    """Views of which a share of each mask has no normals."""
    holes = holes_of(views.masks, share, radius)
    return replace(views, normals=np.where(holes[..., None], np.float32(0), views.normals))


def scene_with_holes(scene: AnalyticScene, share: float = 0.15) -> AnalyticScene:
    """A scene of which a share of each mask has no normals."""
    return replace(scene, normals=np.where(holes_of(scene.masks, share)[..., None], 0, scene.normals))

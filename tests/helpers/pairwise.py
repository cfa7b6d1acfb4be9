# SPDX-License-Identifier: Apache-2.0
"""A small capture with ground-truth depth maps, for the tests of pairwise registration."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.spatial.transform import Rotation

from helpers import scenes
from pmni_nerfstudio.geometry.sim3 import Sim3
from pmni_nerfstudio.registration.pairwise.integrated_depth import IntegratedDepthMaps, integrate_views
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.synth import SynthScene


def rough_capture(**changes) -> tuple[SynthScene, Views]:
    """Ten views of a figure with rough poses."""
    options = {"shape": "figure", "views": 10, "rotation_noise_deg": 15, "translation_noise": 0.5} | changes
    scene, views, _ = scenes.capture(**options)
    return scene, views


@lru_cache
def true_maps() -> tuple[IntegratedDepthMaps, Sim3]:
    """Ground-truth depth maps of `rough_capture` and the similarities that register them."""
    scene, views = rough_capture()
    depths = iter(scene.depth)
    # An arbitrary scale per view, as integration leaves it open.
    maps = integrate_views(views, lambda normals, mask, K: 0.3 * next(depths))
    scale = np.array([np.nanmedian(d / m) for d, m in zip(scene.depth, maps.depths)])
    R = scene.c2w[:, :3, :3]
    t = scene.c2w[:, :3, 3] + scale[:, None] * np.einsum("nij,nj->ni", R, maps.centers)
    return maps, Sim3(R, t, scale)


def random_similarities(count: int, size: float, rng: np.random.Generator) -> Sim3:
    """Similarities about the identity; `size` scales rotation (radians), translation and log scale alike."""
    R = Rotation.from_rotvec(size * rng.standard_normal((count, 3))).as_matrix()
    return Sim3(R, size * rng.standard_normal((count, 3)), np.exp(size * rng.standard_normal(count)))

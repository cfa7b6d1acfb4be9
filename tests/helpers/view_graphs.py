# SPDX-License-Identifier: Apache-2.0
"""Views in no order and the similarities that register them, for the tests of view graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helpers import scenes
from pmni_nerfstudio.geometry.sim3 import Sim3, angles_deg
from pmni_nerfstudio.registration.pairwise.integrated_depth import PyramidLevel
from pmni_nerfstudio.registration.pairwise.multiway import (
    PairwiseSchedule,
    integrate_at_working_resolution,
    pyramid_level,
)
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.threads import one_thread


@dataclass(frozen=True, eq=False)
class KnownViews:
    """Views, their coarsest level, and the truth."""

    views: Views
    c2w: np.ndarray
    """(N, 4, 4), true poses."""
    level: PyramidLevel
    truth: Sim3
    """Similarities from the object frames to the world. Their shifts are only as good as the integrated depths."""

    @property
    def poses(self) -> Poses:
        """True world-to-camera poses."""
        return Poses.from_c2w(self.c2w)

    def ring_neighbors(self, max_deg: float) -> list[tuple[int, int]]:
        """Pairs (i < j) whose viewing directions are at most this far apart."""
        axes = self.c2w[:, :3, 2]
        angle = np.degrees(np.arccos((axes @ axes.T).clip(-1, 1)))
        return [(i, j) for i, j in np.argwhere(angle <= max_deg).tolist() if i < j]


def figure(order: Sequence[int], upside_down: Sequence[int] = (), elevations: Sequence[float] = (25,)) -> KnownViews:
    """Views of a figure, from rings of twelve at one or more elevations.

    Args:
        order: indices of the views, in their order; view k of the second ring is 12 + k.
        upside_down: positions in that order of the cameras that are held upside down.
        elevations: of the rings, in degrees.
    """
    rings = [
        scenes.capture(shape="figure", width=96, height=80, elevation=elevation, seed=3 + k)
        for k, elevation in enumerate(elevations)
    ]
    index, turned = list(order), list(upside_down)
    normals, masks, K, depth = (
        np.concatenate(parts)[index].copy()
        for parts in zip(*((views.normals, views.masks, views.K, scene.depth) for scene, views, _ in rings))
    )
    c2w = np.concatenate([scene.c2w for scene, _, _ in rings])[index].copy()
    height, width = masks.shape[1:]
    masks[turned], depth[turned] = masks[turned, ::-1, ::-1], depth[turned, ::-1, ::-1]
    normals[turned] = normals[turned, ::-1, ::-1] * np.array([-1, -1, 1], np.float32)
    K[turned, 0, 2], K[turned, 1, 2] = width - 1 - K[turned, 0, 2], height - 1 - K[turned, 1, 2]
    c2w[turned] = c2w[turned] @ np.diag([-1.0, -1.0, 1.0, 1.0])

    views = Views(tuple(f"view{k:02d}" for k in range(len(index))), normals, masks, K)
    schedule = PairwiseSchedule()
    with one_thread():
        maps = integrate_at_working_resolution(views, schedule)
        level = pyramid_level(maps, schedule.levels[0], np.random.default_rng(0))
    scale = np.array([np.nanmedian(d / m) for d, m in zip(depth, maps.depths)])
    R = c2w[:, :3, :3]
    t = c2w[:, :3, 3] + scale[:, None] * np.einsum("nij,nj->ni", R, maps.centers)
    return KnownViews(views, c2w, level, Sim3(R, t, scale))


SHUFFLED = tuple(np.random.default_rng(1).permutation(12).tolist())
"""An order of twelve views in which few neighbors in the list are neighbors on the ring."""


def errors_up_to_a_rotation_deg(R: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Errors of camera-to-world rotations after the common rotation of the world that leaves the smallest largest one."""
    common = truth @ np.swapaxes(R, 1, 2)
    errors = [angles_deg(c[None] @ R, truth) for c in common]
    return min(errors, key=lambda e: float(e.max()))


def half_turn(state: Sim3, group: Sequence[int]) -> Sim3:
    """A group of views turned as a whole by 180 degrees about the vertical axis (z) of the world."""
    index = list(group)
    turn = np.diag([-1.0, -1.0, 1.0])
    R, t = state.R.copy(), state.t.copy()
    R[index], t[index] = turn @ R[index], t[index] @ turn
    return Sim3(R, t, state.s)

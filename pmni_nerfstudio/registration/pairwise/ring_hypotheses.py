# SPDX-License-Identifier: Apache-2.0
"""Views in order around the object: ring hypotheses of either direction and several elevations compete."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pmni_nerfstudio.geometry.camera_rings import look_at, ring_c2w
from pmni_nerfstudio.geometry.sim3 import Sim3
from pmni_nerfstudio.registration.pairwise import multiway
from pmni_nerfstudio.registration.pairwise.integrated_depth import IntegratedDepthMaps, PyramidLevel
from pmni_nerfstudio.registration.poses import Poses

ELEVATIONS_DEG = (10.0, 30.0, 50.0)
"""Elevations of the rings. Registration recovers from 20 degrees and more, so these cover from below the equator to 70."""


@dataclass(frozen=True)
class Hypothesis:
    """A ring hypothesis and how far it came."""

    name: str
    cost: float
    """Cost, 0 to 1, when the hypothesis was last evaluated; for the best one, at the end of the coarsest level."""
    pruned: bool
    """Whether the hypothesis was dropped after the first round."""


def best_ring(
    maps: IntegratedDepthMaps,
    level: PyramidLevel,
    schedule: multiway.PairwiseSchedule = multiway.PairwiseSchedule(),
    on_progress: multiway.Progress | None = None,
) -> tuple[Sim3, Poses, tuple[Hypothesis, ...]]:
    """Best arrangement of views that go once around the object in order, at about even steps.

    Every hypothesis is optimized at the coarsest level for one round, and the better half to the end.

    Args:
        maps: the views' depth maps.
        level: their coarsest level.
        schedule: settings of that level.
        on_progress: receives progress.

    Returns:
        The similarities of all views, the poses of the hypothesis, both in a unit-sphere world with y up, and all
        hypotheses.
    """
    spec = schedule.levels[0]
    rings = ring_hypotheses(maps)
    states, costs = [], []
    for number, (name, initial) in enumerate(rings):
        state, _, cost = multiway.solve_level(level, spec, initial, schedule, rounds=1)
        states.append(state)
        costs.append(cost)
        if on_progress is not None:
            on_progress(f"ring {name}", 0.3 * (number + 1) / len(rings), cost)
    order = np.argsort(costs, kind="stable")
    kept = order[: -(-len(order) // 2)]
    for k in kept:
        states[k], _, costs[k] = multiway.solve_level(level, spec, states[k], schedule)
    best = min(kept, key=lambda k: costs[k])
    hypotheses = tuple(Hypothesis(name, float(costs[k]), k not in kept) for k, (name, _) in enumerate(rings))
    return states[best], multiway.poses_from_similarities(maps, rings[best][1]), hypotheses


def ring_hypotheses(maps: IntegratedDepthMaps) -> list[tuple[str, Sim3]]:
    """Names and similarities of the rings of both directions and all elevations."""
    return [
        (f"{direction}, {elevation:g} deg up", ring(maps, elevation, direction == "clockwise"))
        for direction in ("clockwise", "counter-clockwise")
        for elevation in ELEVATIONS_DEG
    ]


def ring(maps: IntegratedDepthMaps, elevation_deg: float, clockwise: bool) -> Sim3:
    """Similarities of views at even steps once around the y axis, each looking at the object's center.

    Args:
        maps: the views' depth maps.
        elevation_deg: elevation of the cameras above the plane y = 0, in degrees.
        clockwise: direction as seen from above, with y toward the viewer.
    """
    n = len(maps)
    world_R = ring_c2w(n, 1.0, elevation_deg, clockwise)[:, :3, :3]
    # Camera coordinates of a frame that looks along the ray to the object's center, as upright as the camera.
    zero, up = np.zeros((n, 3)), np.tile([0.0, -1.0, 0.0], (n, 1))
    camera_R = look_at(zero, maps.centers, up)[:, :3, :3]
    return Sim3(world_R @ np.swapaxes(camera_R, 1, 2), zero, np.ones(n))

# SPDX-License-Identifier: Apache-2.0
"""No poses at all: views that go once round the object, tried as rings of either direction and several elevations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.geometry.camera_rings import ring_c2w
from pmni_nerfstudio.geometry.sim3 import Similarities
from pmni_nerfstudio.registration.pairwise.integrated_depth import Reliefs
from pmni_nerfstudio.registration.pairwise.multiway import (
    PairwiseResult,
    PairwiseSchedule,
    Progress,
    integrated,
    level_of,
    poses_of,
    refine,
    settle,
)
from pmni_nerfstudio.registration.views import Views

ELEVATIONS_DEG = (10.0, 30.0, 50.0)
"""Of the rings tried: poses come back from 20 degrees off and more, so these reach from below the equator to 70."""


@dataclass(frozen=True)
class Hypothesis:
    """A ring that was tried."""

    name: str
    cost: float
    """When it was last looked at, 0 to 1; of the best one, at the end of the coarsest level."""
    pruned: bool
    """Given up before the others."""


@dataclass(frozen=True, eq=False)
class RingResult(PairwiseResult):
    """Where phase one ended, in a unit-sphere world that holds the object, y up as far as the ring tells."""

    hypotheses: tuple[Hypothesis, ...]


def ring(reliefs: Reliefs, elevation_deg: float, clockwise: bool) -> Similarities:
    """Views at even steps once round the y axis, each with its mask's centroid straight before the object's middle.

    Args:
        reliefs: the views.
        elevation_deg: of the cameras over the plane across y.
        clockwise: as seen from above, y towards the reader.
    """
    n = len(reliefs)
    world = ring_c2w(n, 1.0, elevation_deg, clockwise)[:, :3, :3]
    # The same axes about the ray through the centroid: as upright as the camera is.
    camera = _frames(reliefs.centres, np.array([0.0, -1.0, 0.0]))
    return Similarities(world @ np.swapaxes(camera, 1, 2), np.zeros((n, 3)), np.ones(n))


def _frames(forward: Float[np.ndarray, "n 3"], up: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "n 3 3"]:
    """Axes right, down, forward as columns."""
    forward = forward / np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(forward, right), forward], axis=2)


def ring_hypotheses(
    reliefs: Reliefs, elevations_deg: tuple[float, ...] = ELEVATIONS_DEG
) -> list[tuple[str, Similarities]]:
    """Rings of both directions and all elevations, with names for people."""
    return [
        (f"{direction}, {elevation:g} deg up", ring(reliefs, elevation, direction == "clockwise"))
        for direction in ("clockwise", "counter-clockwise")
        for elevation in elevations_deg
    ]


def register_without_poses(
    views: Views,
    schedule: PairwiseSchedule = PairwiseSchedule(),
    seed: int = 0,
    on_progress: Progress | None = None,
    reliefs: Reliefs | None = None,
) -> RingResult:
    """Register views of which only the order is known: once round the object, at about even steps.

    Every hypothesis is registered at the coarsest level for a while; the better half goes on there, and the best is
    finished.

    Args:
        views: all of them, at any resolution, in order.
        schedule: levels, coarse to fine.
        seed: of the points drawn.
        on_progress: for a progress bar.
        reliefs: the views' depths (`integrated`), where they are at hand.
    """
    reliefs = integrated(views, schedule, on_progress) if reliefs is None else reliefs
    spec = schedule.levels[0]
    level = level_of(reliefs, spec, np.random.default_rng(seed))
    rings = ring_hypotheses(reliefs)
    states, costs = [], []
    for number, (name, begun) in enumerate(rings):
        state, _, cost = settle(level, spec, begun, schedule, rounds=1)
        states.append(state)
        costs.append(cost)
        if on_progress is not None:
            on_progress(f"ring {name}", 0.3 * (number + 1) / len(rings), cost)
    order = np.argsort(costs, kind="stable")
    kept = order[: -(-len(order) // 2)]
    for k in kept:
        states[k], _, costs[k] = settle(level, spec, states[k], schedule)
    best = min(kept, key=lambda k: costs[k])

    def on_refined(stage: str, done: float, cost: float) -> None:
        if on_progress is not None:
            on_progress(stage, 0.4 + 0.6 * done, cost)

    result = refine(reliefs, states[best], poses_of(reliefs, rings[best][1]), schedule, seed, on_refined)
    return RingResult(
        poses=result.poses,
        depth_scales=result.depth_scales,
        cost=result.cost,
        view_costs=result.view_costs,
        inliers=result.inliers,
        hypotheses=tuple(Hypothesis(name, float(costs[k]), k not in kept) for k, (name, _) in enumerate(rings)),
    )

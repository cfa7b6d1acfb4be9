# SPDX-License-Identifier: Apache-2.0
"""Starts of a registration: rough poses, ring hypotheses and arrangements of unordered views, one after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.geometry.sim3 import Sim3, angles_deg
from pmni_nerfstudio.registration.framing import center_on_masks
from pmni_nerfstudio.registration.pairwise import multiway
from pmni_nerfstudio.registration.pairwise.appearance import in_order
from pmni_nerfstudio.registration.pairwise.integrated_depth import IntegratedDepthMaps
from pmni_nerfstudio.registration.pairwise.ring_hypotheses import Hypothesis, best_ring
from pmni_nerfstudio.registration.pairwise.unordered import arrange_unordered
from pmni_nerfstudio.registration.pairwise.view_graph import ViewGraph
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.views import Views

_MAX_ROTATION_DEG = 60.0
"""Largest plausible change of the median view by pairwise registration. No rough pose is so far off, but views of a
symmetric shape (sphere, vase) may all slide to the same pose, where they agree best."""
_MIN_CONFIRMED = 0.6
"""Fraction of pairs of neighboring views whose relative pose, searched on its own, confirms a ring. In right rings of 8 to
24 views it is 0.8 and more, in shuffled ones less than 0.3. A ring of which a group of views is turned as a whole passes with
about 0.75; its surface then does not fit."""

_FEW_VIEWS = 40
"""Number of views up to which a ring is tried before unordered views, whatever the views look like: it is cheap."""


@dataclass(frozen=True, eq=False)
class Start:
    """Poses that the alternation starts from."""

    name: str
    poses: Poses
    reference: Poses
    """Poses whose world the result is in."""
    pairwise_cost: float
    """Final cost of pairwise registration, 0 to 1."""
    hypotheses: tuple[Hypothesis, ...] = ()
    """Ring hypotheses that were tried."""


def starts(
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"] | None,
    schedule: multiway.PairwiseSchedule | None,
    seed: int,
    on_progress: multiway.Progress | None,
) -> Iterator[Start]:
    """Registrations of the integrated depth maps, from the cheapest to the most general.

    Rough poses come first, if there are any. Without them a ring of views in order is tried, and skipped if pairs of
    neighbors contradict it. Then follow arrangements of unordered views, which need no poses and no order. Many views
    that are evidently in no order are tried as a ring last. The caller takes the next start only if the last one did not fit.

    Args:
        views: all views.
        c2w: rough camera-to-world poses, or None.
        schedule: levels of pairwise registration; None: the rough poses as they are, and no other start.
        seed: seed of the random points.
        on_progress: receives progress.

    Raises:
        ValueError: there are neither rough poses nor a schedule.
    """
    if schedule is None:
        if c2w is None:
            raise ValueError("c2w: without pairwise registration, rough poses are needed")
        rough = Poses.from_c2w(c2w)
        yield Start("rough poses", rough, rough, 0.0)
        return
    maps = multiway.integrate_at_working_resolution(views, schedule, on_progress)
    if c2w is not None:
        yield _from_rough_poses(views, maps, Poses.from_c2w(c2w), schedule, seed, on_progress)
    graph = ViewGraph(multiway.pyramid_level(maps, schedule.levels[0], np.random.default_rng(seed)))
    hypotheses: tuple[Hypothesis, ...] = ()
    ring_first = c2w is None and (len(views) <= _FEW_VIEWS or in_order(graph.appearance))
    if ring_first:
        ring, hypotheses = _ring(maps, graph, schedule, seed, on_progress)
        if ring is not None:
            yield ring
    everywhere = replace(schedule, outliers=replace(schedule.outliers, max_rotation_deg=180.0))
    for arrangement in arrange_unordered(graph, on_progress):
        state = upright(arrangement)
        initial = multiway.poses_from_similarities(maps, state)
        result = multiway.refine(maps, state, initial, everywhere, seed, on_progress)
        yield Start("unordered views", result.poses, result.poses, result.cost, hypotheses)
    if c2w is None and not ring_first:
        ring, _ = _ring(maps, graph, schedule, seed, on_progress)
        if ring is not None:
            yield ring


def _ring(
    maps: IntegratedDepthMaps,
    graph: ViewGraph,
    schedule: multiway.PairwiseSchedule,
    seed: int,
    on_progress: multiway.Progress | None,
) -> tuple[Start | None, tuple[Hypothesis, ...]]:
    """A ring of views in order, None if pairs of neighbors contradict it, and the hypotheses that were tried."""
    state, initial, hypotheses = best_ring(maps, graph.level, schedule, on_progress)
    if graph.confirmed_fraction(state.R) < _MIN_CONFIRMED:
        return None, hypotheses
    result = multiway.refine(maps, state, initial, schedule, seed, on_progress)
    return Start("ring", result.poses, result.poses, result.cost, hypotheses), hypotheses


def _from_rough_poses(
    views: Views,
    maps: IntegratedDepthMaps,
    rough: Poses,
    schedule: multiway.PairwiseSchedule,
    seed: int,
    on_progress: multiway.Progress | None,
) -> Start:
    """Pairwise registration from rough poses."""
    result = multiway.register_pairwise(views, rough, schedule, seed, on_progress, maps)
    aligned = result.poses.transformed(*align(result.poses, rough))
    collapsed = float(np.median(angles_deg(aligned.R, rough.R))) > _MAX_ROTATION_DEG
    poses = center_on_masks(views, rough) if collapsed else result.poses
    return Start("rough poses", poses, rough, result.cost)


def upright(state: Sim3) -> Sim3:
    """Similarities in a world whose y axis is the mean up direction of the cameras, and whose mean scale is 1.

    Args:
        state: similarities of all views from their object frames (OpenCV axes) to the world.
    """
    up, forward = -state.R[:, :, 1].mean(axis=0), state.R[:, :, 2].mean(axis=0)
    rotation = np.eye(3)
    if np.linalg.norm(up) > 0.1:  # cameras rolled all around have no common up direction
        y = up / np.linalg.norm(up)
        x = np.cross(forward, y)
        if np.linalg.norm(x) < 1e-3:
            x = np.cross(np.eye(3)[np.abs(y).argmin()], y)
        x /= np.linalg.norm(x)
        rotation = np.stack([x, y, np.cross(x, y)])
    scale = 1 / float(np.exp(np.log(state.s).mean()))
    world = Sim3(rotation[None], np.zeros((1, 3)), np.array([scale]))[np.zeros(len(state), int)]
    return world.compose(state)

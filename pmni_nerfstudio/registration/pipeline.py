# SPDX-License-Identifier: Apache-2.0
"""Registration whole: from normal maps and masks, with rough poses or none, to poses and a surface."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from pmni_nerfstudio.geometry.sim3 import angles_deg
from pmni_nerfstudio.registration.alternation import AlternationSchedule, Round, alternate
from pmni_nerfstudio.registration.confidence import Judgement, judge
from pmni_nerfstudio.registration.framing import centre_on_masks
from pmni_nerfstudio.registration.pairwise.multiway import PairwiseSchedule, register_pairwise
from pmni_nerfstudio.registration.pairwise.ring_hypotheses import Hypothesis, register_without_poses
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.relocalization import relocate
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.symmetry import find_symmetry
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.threads import one_thread

OnProgress = Callable[[str, float, float], None]
"""Told the stage, how far the whole is (0 to 1), and the residual of the stage (its cost, or degrees)."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Where a registration is, in the world of the poses that it began from."""

    c2w: Float[np.ndarray, "n 4 4"]
    mesh: tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]] | None
    """None while there is no surface yet."""
    residual_deg: Float[np.ndarray, " n"] | None
    """Median of each view's normals against the surface."""


class Watcher(Protocol):
    """Who looks on while a registration runs."""

    def progress(self, stage: str, done: float, residual: float) -> None:
        """As `OnProgress`."""

    def snapshot(self, snapshot: Snapshot) -> None:
        """After each of its steps."""


_LARGEST_RESIDUAL_DEG = 12.0
"""Of the normals, in the median of the views. Noise of 5 deg and a bias of 5 deg together left 7,
wrong poses 15 and more."""
_LARGEST_RADIUS = 0.97
"""Of the surface about the origin of the unit-sphere world."""


_LARGEST_TURN_DEG = 60.0
"""Of the median view in phase one. Rough poses are not as rough; but views of a shape that leaves their poses open (a
sphere, a vase) slide together, since those that coincide agree best. They start phase two from where they were."""


@dataclass(frozen=True)
class RegistrationSettings:
    """What registration does; the results' cache is keyed by it."""

    seed: int = 0
    """Of the points drawn; the same seed gives the same result, but for some hundredths of a degree that rounding makes."""
    pairwise: PairwiseSchedule = field(default_factory=PairwiseSchedule)
    """Phase one: integrated depth maps laid onto each other."""
    alternation: AlternationSchedule = field(default_factory=AlternationSchedule)
    """Phase two: poses and surface in turn."""


@dataclass(frozen=True, eq=False)
class Registration:
    """What came out, in the unit-sphere world of the poses that went in (or, without any, y up)."""

    c2w: Float[np.ndarray, "n 4 4"]
    """Camera-to-world, OpenCV axes."""
    surface: Surface
    trusted: Bool[np.ndarray, " n"]
    """Views that the surface was made from."""
    judgement: Judgement
    """How well each view agrees with the surface."""
    hypotheses: tuple[Hypothesis, ...]
    """Rings that were tried, where there were no poses."""
    pairwise_cost: float
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    """One line each, for the caller to show."""


def register(
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"] | None,
    settings: RegistrationSettings = RegistrationSettings(),
    on_progress: OnProgress | None = None,
    watcher: Watcher | None = None,
) -> Registration:
    """Recover poses and a first surface (see design in the README).

    Args:
        views: all views to register.
        c2w: rough poses, camera to unit-sphere world, OpenCV axes; None where nothing is known.
        settings: schedules and seed.
        on_progress: for a progress bar.
        watcher: told of poses and surface as they come; nothing is made for it where it is None.
    """
    with one_thread():
        return _register(views, c2w, settings, on_progress, watcher)


def _register(
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"] | None,
    settings: RegistrationSettings,
    on_progress: OnProgress | None,
    watcher: Watcher | None,
) -> Registration:
    def report(stage: str, done: float, residual: float) -> None:
        if on_progress is not None:
            on_progress(stage, done, residual)
        if watcher is not None:
            watcher.progress(stage, done, residual)

    clock, seconds = time.perf_counter(), {}

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[name], clock = round(now - clock, 3), now

    hypotheses: tuple[Hypothesis, ...] = ()
    share = 0.15 if c2w is not None else 0.4

    def on_pairwise(stage: str, done: float, cost: float) -> None:
        report(stage, share * done, cost)

    if c2w is None:
        start = register_without_poses(views, settings.pairwise, settings.seed, on_pairwise)
        hypotheses = start.hypotheses
        reference = start.poses
    else:
        reference = Poses.from_c2w(c2w)
        start = register_pairwise(views, reference, settings.pairwise, settings.seed, on_pairwise)
    begun = start.poses
    if c2w is not None and _turned_deg(begun, reference) > _LARGEST_TURN_DEG:
        begun = centre_on_masks(views, reference)
    lap("pairwise")
    if watcher is not None:
        watcher.snapshot(Snapshot(begun.transformed(*align(begun, reference)).c2w(), None, None))

    rounds = sum(level.rounds for level in settings.alternation.levels)
    finished = 0

    def on_round(round_: Round) -> None:
        nonlocal finished
        finished += 1
        residual = float(np.nanmedian(round_.residual_deg))
        report(f"poses and surface at {round_.resolution}^3", share + (1 - share) * finished / rounds, residual)
        if watcher is not None and len(round_.poses) == len(views):  # else some views are set aside
            watcher.snapshot(_snapshot(round_, reference))

    poses, surface, trusted = _alternate_with_doubt(views, begun, settings, on_round)
    lap("alternation")
    poses, surface = _in_reference_frame(poses, surface, reference, trusted)
    judgement = judge(views, poses, surface)
    warnings = _warnings(views, surface, trusted, judgement, posed=c2w is not None)
    lap("judgement")
    return Registration(
        c2w=poses.c2w(),
        surface=surface,
        trusted=trusted,
        judgement=judgement,
        hypotheses=hypotheses,
        pairwise_cost=start.cost,
        seconds=seconds,
        warnings=warnings,
    )


def _snapshot(round_: Round, reference: Poses) -> Snapshot:
    scale, rotation, shift = align(round_.poses, reference)
    vertices, faces = round_.surface.mesh
    return Snapshot(
        c2w=round_.poses.transformed(scale, rotation, shift).c2w(),
        mesh=(scale * vertices @ rotation.T + shift, faces),
        residual_deg=round_.residual_deg,
    )


def _turned_deg(poses: Poses, reference: Poses) -> float:
    """Median angle by which views have turned against each other since the reference, degrees."""
    return float(np.median(angles_deg(poses.transformed(*align(poses, reference)).R, reference.R)))


def _alternate_with_doubt(
    views: Views, poses: Poses, settings: RegistrationSettings, on_round: Callable[[Round], None]
) -> tuple[Poses, Surface, Bool[np.ndarray, " n"]]:
    """Phase two; views that fit far worse than the others after its coarse levels are set aside and tried again."""
    schedule, seed = settings.alternation, settings.seed
    restart = next((i for i, level in enumerate(schedule.levels) if i > 0 and level.hull_votes is not None), 0)
    coarse, fine = (replace(schedule, levels=part) for part in (schedule.levels[:restart], schedule.levels[restart:]))
    trusted = np.ones(len(views), dtype=bool)
    if coarse.levels:
        poses, surface = alternate(views, poses, coarse, seed, on_round=on_round)
        doubtful = judge(views, poses, surface).doubtful()
        if 0 < doubtful.sum() <= 0.4 * len(views) and (~doubtful).sum() >= 3:
            poses, trusted = _try_again(views, poses, ~doubtful, coarse, seed)
    index = np.flatnonzero(trusted)
    some, surface = alternate(views.subset(list(index)), poses.subset(index), fine, seed, on_round=on_round)
    poses = _with(poses, index, some)
    if not trusted.all():
        for view in np.flatnonzero(~trusted):
            poses = relocate(views, poses, int(view), surface, list(index), schedule.bundle, seed)
    return poses, surface, trusted


def _try_again(
    views: Views, poses: Poses, trusted: Bool[np.ndarray, " n"], schedule: AlternationSchedule, seed: int
) -> tuple[Poses, Bool[np.ndarray, " n"]]:
    """A surface of the trusted views alone, the others placed against it; which of them fit now."""
    index = np.flatnonzero(trusted)
    some, surface = alternate(views.subset(list(index)), poses.subset(index), schedule, seed)
    poses = _with(poses, index, some)
    for view in np.flatnonzero(~trusted):
        poses = relocate(views, poses, int(view), surface, list(index), schedule.bundle, seed)
    return poses, trusted | ~judge(views, poses, surface).doubtful()


def _with(poses: Poses, index: np.ndarray, some: Poses) -> Poses:
    """All poses, some of them replaced; the others follow the similarity by which the world has moved."""
    scale, rotation, shift = align(poses.subset(index), some)
    moved = poses.transformed(scale, rotation, shift)
    R, t = moved.R.copy(), moved.t.copy()
    R[index], t[index] = some.R, some.t
    return Poses(R, t)


def _in_reference_frame(
    poses: Poses, surface: Surface, reference: Poses, trusted: Bool[np.ndarray, " n"]
) -> tuple[Poses, Surface]:
    """Poses and surface in the world of the poses that went in, as near as a similarity brings them."""
    index = np.flatnonzero(trusted)
    scale, rotation, shift = align(poses.subset(index), reference.subset(index))
    # The model's world is the unit sphere: what rough poses would push out of it comes in, by as little as it takes.
    vertices = scale * surface.mesh[0] @ rotation.T + shift
    middle = 0.5 * (vertices.min(axis=0) + vertices.max(axis=0))
    radius, off = float(np.linalg.norm(vertices - middle, axis=1).max()), float(np.linalg.norm(middle))
    if radius + off > _LARGEST_RADIUS:
        shrink = min(1.0, _LARGEST_RADIUS / radius)
        kept = max(_LARGEST_RADIUS - shrink * radius, 0.0) / max(off, 1e-9)
        scale, shift = shrink * scale, shrink * (shift - middle) + min(kept, 1.0) * middle
    return poses.transformed(scale, rotation, shift), surface.transformed(scale, rotation, shift)


def _warnings(
    views: Views, surface: Surface, trusted: Bool[np.ndarray, " n"], judgement: Judgement, posed: bool
) -> tuple[str, ...]:
    out = []
    usual = float(np.median(judgement.median_deg))
    if usual > _LARGEST_RESIDUAL_DEG:
        out.append(
            f"no surface was found that the views agree on: their normals are {usual:.0f} deg off it (median), so "
            "that neither poses nor surface can be trusted; "
            + (
                "if the poses that you have are good, keep them (ns-train pmni-calibrated)"
                if posed
                else "views without poses must be in their order round the object"
            )
        )
    lost = [views.names[i] for i in np.flatnonzero(~trusted)]
    if lost:
        out.append(
            f"{len(lost)} of {len(views)} views don't fit the others and were left out of the surface: "
            f"{', '.join(lost)}; check their masks and normals, or leave them out (exclude-views)"
        )
    symmetry = find_symmetry(surface)
    if symmetry is not None:
        out.append(
            f"the shape leaves the poses open: {symmetry.describe()}, so that masks and normals look the same from "
            "several sides; the surface can be right and the poses still be turned against each other"
        )
    return tuple(out)

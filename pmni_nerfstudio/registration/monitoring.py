# SPDX-License-Identifier: Apache-2.0
"""Progress, snapshots and times of a running registration, for a progress bar, a viewer and the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from pmni_nerfstudio.registration.alternation import Round
from pmni_nerfstudio.registration.poses import Poses, align

OnProgress = Callable[[str, float, float], None]
"""Called with the name of the stage, the fraction done (0 to 1), and the stage's residual (a cost, or degrees; NaN if it has none)."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Intermediate result of a registration, in the world of the reference poses."""

    c2w: Float[np.ndarray, "n 4 4"]
    """Camera-to-world, OpenCV axes."""
    mesh: tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]] | None
    """Vertices and triangles; None before there is a surface."""
    residual_deg: Float[np.ndarray, " n"] | None
    """Median angle between each view's normals and those of the surface, in degrees."""


class Watcher(Protocol):
    """Receiver of progress and snapshots."""

    def progress(self, stage: str, done: float, residual: float) -> None:
        """Receive progress; see `OnProgress`."""

    def snapshot(self, snapshot: Snapshot) -> None:
        """Receive the result of a step."""


@dataclass
class Monitor:
    """Reports progress and snapshots of one registration, and measures the time of its stages."""

    on_progress: OnProgress | None
    """Receives progress."""
    watcher: Watcher | None
    """Receives progress and snapshots; no snapshots are made if None."""
    num_views: int
    """Number of views; rounds over fewer of them give no snapshot."""
    rounds: int
    """Number of rounds of alternation."""
    pairwise_share: float
    """Fraction of the progress that pairwise registration takes."""
    finished_rounds: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of each finished stage."""
    reference: Poses | None = None
    """Poses whose world the snapshots are in."""
    _clock: float = field(default_factory=time.perf_counter)

    def pairwise_progress(self, stage: str, done: float, cost: float) -> None:
        """Report progress of pairwise registration."""
        self._report(stage, self.pairwise_share * done, cost)

    def pairwise_finished(self, poses: Poses, reference: Poses) -> None:
        """Record the result of pairwise registration and its time."""
        self.reference = reference
        self.lap("pairwise")
        if self.watcher is not None:
            self.watcher.snapshot(Snapshot(poses.transformed(*align(poses, reference)).c2w(), None, None))

    def coarse_levels_skipped(self, poses: Poses, reference: Poses) -> None:
        """Show poses that were read from a file; the times of their stages are known from there."""
        self.reference, self._clock = reference, time.perf_counter()
        if self.watcher is not None:
            self.watcher.snapshot(Snapshot(poses.transformed(*align(poses, reference)).c2w(), None, None))

    def round_finished(self, round_: Round) -> None:
        """Report progress and a snapshot after a round of alternation."""
        self.finished_rounds += 1
        done = self.pairwise_share + (1 - self.pairwise_share) * self.finished_rounds / self.rounds
        self._report(f"poses and surface at {round_.resolution}^3", done, round_.median_residual_deg)
        if self.watcher is not None and self.reference is not None and len(round_.poses) == self.num_views:
            scale, rotation, shift = align(round_.poses, self.reference)
            vertices, faces = round_.surface.mesh
            c2w = round_.poses.transformed(scale, rotation, shift).c2w()
            mesh = (scale * vertices @ rotation.T + shift, faces)
            self.watcher.snapshot(Snapshot(c2w, mesh, round_.residual_deg))

    def lap(self, stage: str) -> None:
        """Record the time since the last stage ended."""
        now = time.perf_counter()
        self.seconds[stage], self._clock = round(now - self._clock, 3), now

    def _report(self, stage: str, done: float, residual: float) -> None:
        if self.on_progress is not None:
            self.on_progress(stage, done, residual)
        if self.watcher is not None:
            self.watcher.progress(stage, done, residual)

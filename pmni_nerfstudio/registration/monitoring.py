# SPDX-License-Identifier: Apache-2.0
"""Progress, snapshots and times of a running registration, for a progress bar, a viewer and the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from pmni_nerfstudio.registration.alternation import Round
from pmni_nerfstudio.registration.poses import Poses, align

OnProgress = Callable[[str, float, float], None]
"""Called with the name of the stage, the fraction done (0 to 1), and the stage's residual (a cost, or degrees)."""


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


class Monitor:
    """Reports progress and snapshots of one registration, and measures the time of its stages.

    Args:
        on_progress: receives progress.
        watcher: receives progress and snapshots; no snapshots are made if None.
        num_views: number of views; rounds over fewer of them give no snapshot.
        rounds: number of rounds of alternation.
        pairwise_share: fraction of the progress that pairwise registration takes.
    """

    def __init__(
        self,
        on_progress: OnProgress | None,
        watcher: Watcher | None,
        num_views: int,
        rounds: int,
        pairwise_share: float,
    ) -> None:
        self.on_progress, self.watcher = on_progress, watcher
        self.num_views, self.rounds, self.pairwise_share = num_views, rounds, pairwise_share
        self.finished_rounds = 0
        self.seconds: dict[str, float] = {}
        """Time of each finished stage."""
        self.reference: Poses | None = None
        """Poses whose world the snapshots are in."""
        self._clock = time.perf_counter()

    def pairwise_progress(self, stage: str, done: float, cost: float) -> None:
        """Report progress of pairwise registration."""
        self._report(stage, self.pairwise_share * done, cost)

    def pairwise_finished(self, poses: Poses, reference: Poses) -> None:
        """Record the result of pairwise registration and its time."""
        self.reference = reference
        self.lap("pairwise")
        if self.watcher is not None:
            self.watcher.snapshot(Snapshot(poses.transformed(*align(poses, reference)).c2w(), None, None))

    def round_finished(self, round_: Round) -> None:
        """Report progress and a snapshot after a round of alternation."""
        self.finished_rounds += 1
        done = self.pairwise_share + (1 - self.pairwise_share) * self.finished_rounds / self.rounds
        self._report(f"poses and surface at {round_.resolution}^3", done, float(np.nanmedian(round_.residual_deg)))
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

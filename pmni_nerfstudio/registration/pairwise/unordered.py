# SPDX-License-Identifier: Apache-2.0
"""Registration of unordered views: arrangements of all views, however they were taken."""

from __future__ import annotations

from collections.abc import Iterator

from pmni_nerfstudio.geometry.sim3 import Sim3
from pmni_nerfstudio.registration.pairwise import multiway
from pmni_nerfstudio.registration.pairwise.view_graph import ViewGraph


def arrange_unordered(graph: ViewGraph, on_progress: multiway.Progress | None = None) -> Iterator[Sim3]:
    """Arrangements of all views, the most likely first.

    Args:
        graph: view graph; pairs that were searched before are kept.
        on_progress: receives progress.
    """

    def report(stage: str, first: float, share: float):
        def on_fraction(done: float) -> None:
            if on_progress is not None:
                on_progress(stage, first + share * done, float("nan"))

        return on_fraction

    graph.search_all_pairs(report("relative poses", 0.0, 0.4))
    for arrangement in graph.arrangements(report("view graph", 0.4, 0.2)):
        yield arrangement.state

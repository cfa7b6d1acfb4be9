# SPDX-License-Identifier: Apache-2.0
"""Registration of unordered views: arrangements of all views, however they were taken."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pmni_nerfstudio.geometry.sim3 import Sim3
from pmni_nerfstudio.registration.pairwise import multiway
from pmni_nerfstudio.registration.pairwise.appearance import spread_views
from pmni_nerfstudio.registration.pairwise.view_graph import ViewGraph

_MAX_ARRANGED = 40
"""Largest number of views of which all pairs are searched."""
_ARRANGED = 32
"""Number of views that are arranged where there are more; the others are placed beside those that they look like."""
_NEAREST = 3
"""Number of arranged views that each of the others is compared with."""


def arrange_unordered(graph: ViewGraph, on_progress: multiway.Progress | None = None) -> Iterator[Sim3]:
    """Arrangements of all views, the most likely first.

    The time of a search of all pairs grows with the square of the number of views. Of many views, only some that look
    different from each other are arranged; every other view is searched against the few that look most like it.

    Args:
        graph: view graph; pairs that were searched before are kept.
        on_progress: receives progress.
    """

    def report(stage: str, first: float, share: float):
        def on_fraction(done: float) -> None:
            if on_progress is not None:
                on_progress(stage, first + share * done, float("nan"))

        return on_fraction

    if graph.num_views <= _MAX_ARRANGED:
        graph.search_all_pairs(report("relative poses", 0.0, 0.4))
        for arrangement in graph.arrangements(report("view graph", 0.4, 0.2)):
            yield arrangement.state
        return
    arranged = spread_views(graph.appearance, _ARRANGED)
    others = np.setdiff1d(np.arange(graph.num_views), arranged)
    alike = arranged[np.argsort(graph.appearance[np.ix_(others, arranged)], axis=1, kind="stable")[:, :_NEAREST]]
    core = graph.subgraph(arranged)
    core.search_all_pairs(report("relative poses", 0.0, 0.25))
    graph.search_pairs(
        np.stack([np.repeat(others, _NEAREST), alike.ravel()], axis=1), report("relative poses", 0.25, 0.15)
    )
    for arrangement in core.arrangements(report("view graph", 0.4, 0.2)):
        yield graph.extended(arrangement.state, arranged)

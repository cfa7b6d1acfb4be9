# SPDX-License-Identifier: Apache-2.0
"""Differences in appearance: independent of the camera's roll, small for neighbors in space, and what is chosen by them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.holes import views_with_holes
from helpers.scenes import capture
from helpers.view_graphs import KnownViews, errors_up_to_a_rotation_deg, figure

from pmni_nerfstudio.integration.bilateral import integrate_normals
from pmni_nerfstudio.registration.pairwise import unordered
from pmni_nerfstudio.registration.pairwise.appearance import appearance_distances, in_order, spread_views
from pmni_nerfstudio.registration.pairwise.integrated_depth import integrate_views, make_level
from pmni_nerfstudio.registration.pairwise.view_graph import ViewGraph
from pmni_nerfstudio.threads import one_thread


@pytest.fixture(scope="module")
def two_rings() -> KnownViews:
    """Twenty-four views in no order, five of them with the camera upside down."""
    order = np.random.default_rng(2).permutation(24)
    return figure(order.tolist(), upside_down=(1, 4, 9, 13, 20), elevations=(15, 40))


def test_views_that_look_alike_are_near_in_space(two_rings: KnownViews):
    distances = appearance_distances(two_rings.level)
    np.testing.assert_allclose(distances, distances.T, atol=1e-6)
    assert np.diagonal(distances).max() < 1e-3
    np.fill_diagonal(distances, np.inf)
    axes = two_rings.c2w[:, :3, 2]
    angle = np.degrees(np.arccos((axes @ axes.T).clip(-1, 1)))
    nearest = np.argsort(distances, axis=1)[:, :3]
    assert (np.take_along_axis(angle, nearest, axis=1).min(axis=1) <= 35).mean() > 0.9


def test_a_roll_of_the_camera_changes_nothing():
    upright, turned = figure(range(12)), figure(range(12), upside_down=range(6))
    before, after = appearance_distances(upright.level), appearance_distances(turned.level)
    # The level's grid of pixels is not symmetric about the image's center.
    np.testing.assert_allclose(after, before, atol=0.15 * np.median(before))
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.99


def test_a_mirrored_view_is_not_alike():
    """A mirrored map has the same power in every frequency along the angle, but no shift makes it alike."""
    level = figure(range(6)).level
    table = level.table.view(6, level.height, level.width, 5)
    mirrored = table.flip(2) * torch.tensor([-1.0, 1, 1, 1, 1])
    both = replace(level, table=torch.cat([table, mirrored]).reshape(-1, 5), points=torch.cat(2 * [level.points]))
    distances = appearance_distances(both)
    assert (distances[np.arange(6), np.arange(6) + 6] > 0.3 * np.median(distances)).all()


def test_holes_change_little():
    """A fifth of each mask without normals, in other places in every view."""
    _, views, _ = capture()
    whole, holed = (
        appearance_distances(make_level(integrate_views(v, integrate_normals), 2, 100, np.random.default_rng(0)))
        for v in (views, views_with_holes(views))
    )
    others = ~np.eye(len(views), dtype=bool)
    assert np.corrcoef(holed[others], whole[others])[0, 1] > 0.8


def test_order_of_a_ring():
    steps = np.abs(np.arange(60)[:, None] - np.arange(60))
    distances = np.minimum(steps, 60 - steps).astype(float)
    assert in_order(distances)
    shuffled = np.random.default_rng(0).permutation(60)
    assert not in_order(distances[np.ix_(shuffled, shuffled)])


def test_spread_views_leave_no_gap():
    places = np.random.default_rng(0).uniform(size=200)
    chosen = spread_views(np.abs(places[:, None] - places), 10)
    assert (np.diff(chosen) > 0).all() and len(chosen) == 10
    assert np.abs(places[:, None] - places[chosen]).min(axis=1).max() < 0.12  # 0.05 at best


@pytest.mark.slow
def test_many_views_are_placed_beside_a_few(two_rings: KnownViews, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unordered, "_MAX_ARRANGED", 20)
    monkeypatch.setattr(unordered, "_ARRANGED", 16)
    graph = ViewGraph(two_rings.level)
    with one_thread():
        state = next(unordered.arrange_unordered(graph))
    assert len(graph.hypotheses) // 2 == 8 * 3  # the pairs of the arranged views are another graph's
    assert errors_up_to_a_rotation_deg(state.R, two_rings.truth.R).max() < 20


def test_a_part_of_a_graph_keeps_its_hypotheses(two_rings: KnownViews):
    graph = ViewGraph(two_rings.level)
    graph.search_pairs(np.array([[3, 7], [3, 11]]))
    part = graph.subgraph(np.array([3, 7, 8]))
    assert set(part.hypotheses) == {(0, 1), (1, 0)}
    assert part.hypotheses[0, 1] is graph.hypotheses[3, 7]
    relative = graph.hypotheses[3, 7].relative
    zero, one, three, seven = (np.full(len(relative), k) for k in (0, 1, 3, 7))
    np.testing.assert_array_equal(part.search.cost(zero, one, relative), graph.search.cost(three, seven, relative))

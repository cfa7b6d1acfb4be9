# SPDX-License-Identifier: Apache-2.0
"""View graphs: poses of unordered views, their consistency, and moves of groups of views, against the truth."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from helpers.pairwise import random_similarities
from helpers.view_graphs import SHUFFLED, KnownViews, errors_up_to_a_rotation_deg, figure, half_turn
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.sim3 import Sim3, angles_deg
from pmni_nerfstudio.registration.pairwise import view_graph
from pmni_nerfstudio.registration.pairwise.group_moves import group_moves
from pmni_nerfstudio.registration.pairwise.unordered import arrange_unordered
from pmni_nerfstudio.registration.pairwise.view_graph import ViewGraph, ViewGraphOptions
from pmni_nerfstudio.registration.starts import upright
from pmni_nerfstudio.threads import one_thread

# Rings of twelve views at two elevations, of which less than half is seen; from 10 degrees up and from 40.
PART_OF_TWO_RINGS = (2, 0, 14, 12, 3, 16, 1, 13, 4, 15)
GROUP = [position for position, view in enumerate(SHUFFLED) if 3 <= view < 7]
"""Four views that are neighbors on the ring."""


@pytest.fixture(autouse=True)
def single_thread():
    with one_thread():
        yield


@lru_cache
def shuffled_ring() -> tuple[KnownViews, ViewGraph, list[float]]:
    """Views of a shuffled ring, the graph of all their pairs, and the progress of the search."""
    known = figure(SHUFFLED)
    graph = ViewGraph(known.level)
    progress: list[float] = []
    graph.search_all_pairs(progress.append)
    return known, graph, progress


def small_graph(graph: ViewGraph, hypotheses: bool = True) -> ViewGraph:
    """A graph of the same views whose placement starts once."""
    one = ViewGraph(graph.level, ViewGraphOptions(starts=1, few_comparisons=(0.1,)))
    one.hypotheses = dict(graph.hypotheses) if hypotheses else {}
    return one


# Arrangements


def test_a_shuffled_ring_comes_back():
    known, graph, progress = shuffled_ring()
    assert progress == pytest.approx((np.arange(66) + 1) / 66)
    found = graph.arrangements()
    assert errors_up_to_a_rotation_deg(found[0].state.R, known.truth.R).max() < 15
    assert [a.score for a in found] == sorted(a.score for a in found)
    assert found[0].consistency > 0.85
    # Similar in size, too; the views' scales are arbitrary but known.
    ratio = found[0].state.s / known.truth.s
    assert ratio.max() / ratio.min() < 1.25


def test_two_elevations_come_back():
    """Views of a part of two rings are arranged; they need not close a circle."""
    known = figure(PART_OF_TWO_RINGS, elevations=(10, 40))
    stages: list[tuple[str, float]] = []
    state = next(arrange_unordered(ViewGraph(known.level), lambda *now: stages.append((now[0], now[1]))))
    assert errors_up_to_a_rotation_deg(state.R, known.truth.R).max() < 15
    assert [done for _, done in stages] == sorted(done for _, done in stages)
    assert {stage for stage, _ in stages} == {"relative poses", "view graph"}
    assert 0 < stages[0][1] <= stages[-1][1] <= 1


def test_arrangements_are_deterministic():
    _, graph, _ = shuffled_ring()
    again = small_graph(graph, hypotheses=False)
    few = np.argwhere(np.triu(np.ones((12, 12), bool), 1))[::7]
    again.search_pairs(few)
    for i, j in few.tolist():
        np.testing.assert_allclose(again.hypotheses[i, j].costs, graph.hypotheses[i, j].costs, atol=1e-4)
        assert angles_deg(again.hypotheses[j, i].relative.R, graph.hypotheses[j, i].relative.R).max() < 0.1
    (first, *_), (second, *_) = (small_graph(graph).arrangements() for _ in range(2))
    assert angles_deg(first.state.R, second.state.R).max() < 0.1
    assert first.score == pytest.approx(second.score, abs=1e-3)


def test_searched_pairs_are_kept(monkeypatch):
    _, graph, _ = shuffled_ring()
    one = small_graph(graph, hypotheses=False)
    one.search_pairs(np.array([[0, 1], [2, 3]]))
    kept = dict(one.hypotheses)
    assert set(kept) == {(0, 1), (1, 0), (2, 3), (3, 2)}
    searched = []
    search = one.search.search
    monkeypatch.setattr(one.search, "search", lambda i, j: searched.append((i, j)) or search(i, j))
    one.search_pairs(np.array([[0, 1], [2, 3], [4, 5]]))
    assert searched == [(4, 5)]
    assert all(one.hypotheses[pair] is found for pair, found in kept.items())
    for (i, j), found in one.hypotheses.items():
        there_and_back = one.hypotheses[j, i].relative.compose(found.relative)
        np.testing.assert_allclose(there_and_back.R, np.tile(np.eye(3), (len(found.costs), 1, 1)), atol=1e-9)
        np.testing.assert_allclose(there_and_back.t, 0, atol=1e-9)


@pytest.mark.parametrize("few_comparisons", [0.1, 0.03])
def test_candidates_are_compared_with_every_placed_view(few_comparisons):
    """The twin compares every candidate with every placed view at the end, one at a time."""
    known, graph, _ = shuffled_ring()
    placed = [5, 0, 8]
    candidates = view_graph._Candidates(graph, few_comparisons)
    for done in range(1, 4):
        candidates.remove(placed[:done])
        candidates.propose(known.truth, placed[:done], placed[done - 1])
    assert set(candidates.views) == set(range(12)) - set(placed)

    def score(view: int, similarity: Sim3) -> float:
        total, weights = few_comparisons, 0.0
        for other in placed:
            angle = np.degrees(np.arccos(similarity.R[0, :, 2] @ known.truth.R[other, :, 2]))
            weight = np.interp(angle, [25, 65], [1, 0])
            relative = known.truth[[other]].inverse().compose(similarity)
            total += weight * graph.search.cost(np.array([view]), np.array([other]), relative)[0]
            weights += weight
        return total / max(weights, 1e-3)

    scores = [score(int(v), candidates.similarities[[k]]) for k, v in enumerate(candidates.views)]
    np.testing.assert_allclose(candidates.scores(), scores, rtol=1e-4)
    view, similarity = candidates.best()
    assert score(view, similarity) == pytest.approx(min(scores), rel=1e-4)
    # There is a candidate for each hypothesis of an unplaced and a placed view.
    pairs = [(view, other) for view in set(candidates.views) for other in placed]
    assert len(scores) == sum(len(graph.hypotheses[pair].costs) for pair in pairs)


def test_arrangements_that_differ_in_their_world_alone_are_the_same():
    known, _, _ = shuffled_ring()
    world = random_similarities(1, 1.0, np.random.default_rng(2))[np.zeros(12, int)]
    assert not view_graph._differ(world.compose(known.truth), known.truth)
    rough = known.truth.retract(0.08 * np.random.default_rng(3).standard_normal((12, 7)))
    assert not view_graph._differ(world.compose(rough), known.truth)
    one_wrong = half_turn(known.truth, [4])
    assert not view_graph._differ(one_wrong, known.truth)
    assert view_graph._differ(world.compose(half_turn(known.truth, GROUP)), known.truth)


# Agreement with given poses


def test_consistency_is_highest_at_the_truth():
    known, graph, _ = shuffled_ring()
    R = known.truth.R
    world = Rotation.random(random_state=1).as_matrix()
    right = graph.consistency(R)
    assert 0.85 < right <= 1
    assert graph.consistency(world @ R) == pytest.approx(right)
    turned = graph.consistency(half_turn(known.truth, GROUP).R)
    assert 0.5 < turned < right - 0.1
    one = graph.consistency(half_turn(known.truth, [GROUP[0]]).R)
    assert one < right - 0.03
    assert graph.consistency(Rotation.random(12, random_state=2).as_matrix()) < 0.2


def test_the_truth_scores_better_than_a_turned_group():
    known, graph, _ = shuffled_ring()
    right, wrong = graph.evaluate(known.truth), graph.evaluate(half_turn(known.truth, GROUP))
    assert right.score < wrong.score - 0.05
    assert 0 < right.pairwise_cost < wrong.pairwise_cost < 1
    world = random_similarities(1, 0.5, np.random.default_rng(2))[np.zeros(12, int)]
    assert graph.evaluate(world.compose(known.truth)).score == pytest.approx(right.score, abs=1e-3)


def test_right_poses_are_confirmed_and_wrong_rings_are_not():
    known, graph, _ = shuffled_ring()
    one = small_graph(graph, hypotheses=False)
    R = known.truth.R
    assert one.confirmed_fraction(R) >= 0.8
    assert len(one.hypotheses) <= 2 * 24  # neighbors only
    rough = known.truth.retract(0.1 * np.random.default_rng(0).standard_normal((12, 7)) * (np.arange(7) < 3)).R
    assert one.confirmed_fraction(rough) >= 0.6
    # The views' order in the list taken for their order on the ring, and a ring the other way around.
    steps = 2 * np.pi / 12 * np.arange(12)
    ring = Rotation.from_rotvec(steps[:, None] * [0, 0, 1]).as_matrix() @ R[SHUFFLED.index(0)]
    assert one.confirmed_fraction(ring) < 0.35
    position = np.argsort(SHUFFLED)
    backward = R[position[(-np.arange(12)) % 12]][list(SHUFFLED)]
    assert one.confirmed_fraction(backward) < 0.35


# Groups of views


@pytest.mark.parametrize("rotation_deg", [[0, 0, 180], [180, 0, 0], [0, 0, 100]])
def test_a_turned_group_is_moved_back(rotation_deg):
    """Four neighboring views on the ring, turned as a whole about the vertical or a horizontal axis."""
    known, graph, _ = shuffled_ring()
    rotation = Rotation.from_rotvec(rotation_deg, degrees=True).as_matrix()
    turn = Sim3(rotation[None], np.zeros((1, 3)), np.ones(1))
    moved = turn[np.zeros(4, int)].compose(known.truth[GROUP])
    wrong = known.truth
    for k, view in enumerate(GROUP):
        wrong = wrong.replaced(view, moved[[k]])
    assert errors_up_to_a_rotation_deg(wrong.R, known.truth.R).max() > 90
    moves = group_moves(graph.hypotheses, wrong)
    errors = [errors_up_to_a_rotation_deg(move.R, known.truth.R).max() for move in moves]
    assert min(errors) < 15
    # The move that restores them has the best score.
    best = min(moves, key=lambda move: graph.evaluate(move).score)
    assert errors_up_to_a_rotation_deg(best.R, known.truth.R).max() < 15
    assert graph.evaluate(best).score < graph.evaluate(wrong).score


def test_groups_move_as_a_whole():
    """In every move at most half of the views changes, and all that do by the same similarity,
    which a hypothesis implies."""
    known, graph, _ = shuffled_ring()
    state = half_turn(known.truth, GROUP)
    moves = group_moves(graph.hypotheses, state)
    assert moves
    for move in moves:
        changed = np.flatnonzero(np.abs(move.R - state.R).max(axis=(1, 2)) > 1e-9)
        assert 1 <= len(changed) <= 6
        motion = move[changed].compose(state[changed].inverse())
        for name in ("R", "t", "s"):
            values = getattr(motion, name)
            np.testing.assert_allclose(values, np.repeat(values[:1], len(changed), axis=0), atol=1e-6)
        # A pair of a moved and an unmoved view has the relative pose of one of its hypotheses.
        differences = [
            angles_deg(graph.hypotheses[c, u].relative.R, (move.R[u].T @ move.R[c])[None]).min()
            for c in changed.tolist()
            for u in set(range(12)) - set(changed.tolist())
        ]
        assert min(differences) < 1e-3


# World of an arrangement


@pytest.mark.parametrize("seed", range(3))
def test_an_upright_world(seed):
    known, _, _ = shuffled_ring()
    rng = np.random.default_rng(seed)
    world = random_similarities(1, 1.0, rng)[np.zeros(12, int)]
    state = replace(known.truth, s=known.truth.s * rng.uniform(0.9, 1.1, 12))
    result = upright(world.compose(state))
    up = -result.R[:, :, 1].mean(axis=0)
    np.testing.assert_allclose(up / np.linalg.norm(up), [0, 1, 0], atol=1e-9)
    # The geometric mean, as scales are ratios.
    assert np.log(result.s).mean() == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(np.linalg.det(result.R), 1)
    for i, j in ((0, 1), (3, 9), (11, 5)):
        before, after = (s[[j]].inverse().compose(s[[i]]) for s in (state, result))
        for name in ("R", "t", "s"):
            np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=1e-9)


def test_an_upright_world_of_a_regular_ring():
    """The mean viewing direction is vertical, so that it gives no horizontal axis."""
    around = Rotation.from_rotvec(np.pi / 3 * np.arange(6)[:, None] * [0, 1, 0])
    ring = Rotation.from_euler("zx", [70, 25], degrees=True) * around * Rotation.from_euler("x", -30, degrees=True)
    result = upright(Sim3(ring.as_matrix(), np.zeros((6, 3)), np.full(6, 2.0)))
    np.testing.assert_allclose(result.R.mean(axis=0)[:, 1], [0, -np.cos(np.radians(30)), 0], atol=1e-9)
    np.testing.assert_allclose(result.s, 1)
    np.testing.assert_allclose(result.R @ np.swapaxes(result.R, 1, 2), np.tile(np.eye(3), (6, 1, 1)), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(result.R), 1)


def test_the_scale_of_views_with_no_common_up_direction():
    R = Rotation.from_rotvec(np.pi / 3 * np.arange(6)[:, None] * [0, 0, 1]).as_matrix()
    np.testing.assert_allclose(upright(Sim3(R, np.zeros((6, 3)), np.full(6, 2.0))).s, 1)

# SPDX-License-Identifier: Apache-2.0
"""Moves of groups of views that agree among themselves and are wrong as a whole, as where front and back are alike."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from pmni_nerfstudio.geometry.sim3 import Sim3, angles_deg
from pmni_nerfstudio.registration.pairwise.relative_pose import PairHypotheses

_MAX_DIFFERENCE_DEG = 35.0
"""A hypothesis that differs by more from the current relative pose contradicts it."""
_MOVES_PER_GROUP = 3


def group_moves(hypotheses: dict[tuple[int, int], PairHypotheses], state: Sim3) -> list[Sim3]:
    """Similarities of all views after moving a group of them as a whole.

    The groups are the parts into which the minimum spanning tree of the pairs that agree with the current poses falls
    when one of its edges is cut. The smaller part moves so that a pair across the cut takes the relative pose of its
    hypothesis; the pairs of lowest cost whose hypotheses contradict the current poses are tried.

    Args:
        hypotheses: hypotheses of all pairs, in both directions.
        state: similarities of all views.
    """
    n = len(state)
    agreeing = np.zeros((n, n))
    contradicting: list[tuple[float, int, int, int]] = []
    for (i, j), found in hypotheses.items():
        if i > j:
            continue
        current = state.R[j].T @ state.R[i]
        differences = angles_deg(found.relative.R, current[None])
        if (differences < _MAX_DIFFERENCE_DEG).any():
            agreeing[i, j] = found.costs[differences < _MAX_DIFFERENCE_DEG].min()
        for k in np.flatnonzero(differences >= _MAX_DIFFERENCE_DEG)[:2]:
            contradicting.append((float(found.costs[k]), i, j, int(k)))
    contradicting.sort()
    tree = minimum_spanning_tree(csr_array(agreeing)).toarray()
    moves = []
    for i, j in np.argwhere(tree > 0):
        cut = tree.copy()
        cut[i, j] = 0
        _, label = connected_components(csr_array(cut), directed=False)
        group = label == label[i]
        others = label == label[j]
        if group.sum() > others.sum():
            group, others = others, group
        moves += _moves_of_group(hypotheses, state, group, contradicting)
    return moves


def _moves_of_group(
    hypotheses: dict[tuple[int, int], PairHypotheses],
    state: Sim3,
    group: Bool[np.ndarray, " n"],
    contradicting: list[tuple[float, int, int, int]],
) -> list[Sim3]:
    """Moves of one group by the contradicting pairs of lowest cost between the group and the others."""
    moves: list[Sim3] = []
    rotations: list[Float[np.ndarray, "3 3"]] = []
    for _, i, j, k in contradicting:
        if group[i] == group[j]:
            continue
        source, target = (i, j) if group[i] else (j, i)
        relative = hypotheses[source, target].relative[[k]]
        move = state[[target]].compose(relative).compose(state[[source]].inverse())
        if any(angles_deg(move.R, other[None])[0] < _MAX_DIFFERENCE_DEG for other in rotations):
            continue
        rotations.append(move.R[0])
        index = np.flatnonzero(group)
        moved = move[np.zeros(len(index), int)].compose(state[index])
        moves.append(state.replaced(index, moved))
        if len(moves) == _MOVES_PER_GROUP:
            break
    return moves

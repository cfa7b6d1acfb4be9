# SPDX-License-Identifier: Apache-2.0
"""Correspondence of labels between views, from the surface points at which they are seen."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment

CONSISTENT = 0.8
"""Least share of the observations of a labelled surface point that have its most frequent label, from which on labels mean
the same in all views. Errors of contours and poses leave more than 0.95, labels in random order 0.4 for three objects."""
_MIN_OVERLAP = 0.3
"""Least share of a label's points that an object must have had in other views for the label to be that object."""
_ROUNDS = 10

Matching = dict[tuple[int, int], int]
"""Object by view and label."""


def consistency(seen: Int[np.ndarray, "n p"]) -> float:
    """Share of the observations of points that agree with the point's most frequent label.

    Args:
        seen: label of each point in each view, zero or negative where it has none. Points that fewer than two views see do
            not count.

    Returns:
        1 if no point is seen twice.
    """
    values = np.unique(seen[seen > 0])
    counts = (
        np.stack([(seen == value).sum(axis=0) for value in values]) if len(values) else np.zeros((1, seen.shape[1]))
    )
    total = counts.sum(axis=0)
    twice = total >= 2
    return float(counts.max(axis=0)[twice].sum() / total[twice].sum()) if twice.any() else 1.0


def match_labels(seen: Int[np.ndarray, "n p"]) -> Matching:
    """Group labels of single views into objects, of which each has at most one label in a view.

    Views are added one by one, that with most points known so far first. Its labels are assigned to the known objects such
    that as many points as possible keep their object (Hungarian method); a label that fits none is a new object. Then all
    views are assigned again, each against the others, until nothing changes.

    Args:
        seen: label of each of P surface points in N views, zero or negative where it has none.

    Returns:
        Objects, numbered from 1 by decreasing number of observations.
    """
    labels = [np.unique(row[row > 0]) for row in seen]
    votes = np.zeros((0, seen.shape[1]), dtype=np.int32)  # number of views by object and point
    matching: Matching = {}
    waiting = {view for view, own in enumerate(labels) if len(own)}
    while waiting:
        known = votes.any(axis=0)
        view = max(waiting, key=lambda v: ((seen[v, known] > 0).sum(), (seen[v] > 0).sum(), -v))
        waiting.remove(view)
        votes = _assign(seen[view], labels[view], view, votes, matching)
    for _ in range(_ROUNDS):
        before = dict(matching)
        for view, own in enumerate(labels):
            for label in own:
                votes[matching.pop((view, int(label)))] -= seen[view] == label
            votes = _assign(seen[view], own, view, votes, matching)
        if matching == before:
            break
    sizes = votes.sum(axis=1)
    rank = {int(old): new for new, old in enumerate(np.argsort(-sizes, kind="stable"), start=1)}
    return {key: rank[old] for key, old in matching.items()}


def _assign(
    row: Int[np.ndarray, " p"],
    own: Int[np.ndarray, " k"],
    view: int,
    votes: Int[np.ndarray, "m p"],
    matching: Matching,
) -> Int[np.ndarray, "l p"]:
    """Assign the labels of one view to objects, and return the votes with its own, and rows for new objects."""
    present = np.stack([row == label for label in own]) if len(own) else np.zeros((0, len(row)), dtype=bool)
    # A point belongs to the object that most views give it.
    owner = np.where(votes.any(axis=0), votes.argmax(axis=0), -1) if len(votes) else np.full(len(row), -1)
    shared = np.stack([(present & (owner == m)).sum(axis=1) for m in range(len(votes))], axis=1) if len(votes) else None
    chosen: dict[int, int] = {}
    if shared is not None and shared.size:
        known = np.maximum((present & (owner >= 0)).sum(axis=1), 1)
        for k, m in zip(*linear_sum_assignment(-shared)):
            if shared[k, m] >= _MIN_OVERLAP * known[k] and shared[k, m] > 0:
                chosen[int(k)] = int(m)
    for k, label in enumerate(own):
        if k not in chosen:
            chosen[k] = len(votes)
            votes = np.concatenate([votes, np.zeros((1, len(row)), dtype=votes.dtype)])
        votes[chosen[k]] += present[k]
        matching[view, int(label)] = chosen[k]
    return votes


def relabelled(labels: Int[np.ndarray, "n h w"], matching: Matching) -> Int[np.ndarray, "n h w"]:
    """Label images with the numbers of the objects; 0 for labels that belong to none."""
    objects = np.zeros_like(labels)
    for (view, label), number in matching.items():
        objects[view][labels[view] == label] = number
    return objects

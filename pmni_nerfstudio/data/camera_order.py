# SPDX-License-Identifier: Apache-2.0
"""Which numbered camera belongs to which view: the one rule for all files that number cameras and name views.

Camera files such as cameras_sphere.npz count the views, and programs count differently: by the numbers in the names, in
natural order (2 before 10), or in the order of text (10 before 2). Where these differ, the candidates are compared by how
well the cameras fit the silhouettes and normals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.listing import natural_key
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.silhouette_coherence import Fit

_MIN_MARGIN = 0.02
"""Difference of scores below which two orders fit equally well."""
_MIN_SILHOUETTES = 0.97
"""Share of coherent silhouettes of exact cameras; lower ones have to fit better than a random order."""
_MIN_GAIN = 0.25
"""Part of the way from a random order's score to that of a perfect fit that rough cameras have to reach."""
_BEST_SCORE = 1.9
"""Score of exact cameras."""
_NUM_RANDOM = 3


@dataclass(frozen=True)
class CameraOrder:
    """An assignment of cameras to views."""

    rule: str
    """Rule that derives the cameras from the names, as part of a sentence."""
    cameras: tuple[int, ...]
    """Number of each view's camera."""


def candidate_orders(
    names: Sequence[str], cameras: Collection[int], listings: Mapping[str, Sequence[str]] | None = None
) -> list[CameraOrder]:
    """Plausible assignments of numbered cameras to named views, all different, the most usual first.

    Args:
        names: names of the views.
        cameras: numbers of the cameras; more than there are views if some were taken out.
        listings: names of other files of the views, by a word for them such as "photographs". If there is one for each
            camera, views may have been numbered before some were taken out.

    Returns:
        Empty if no rule gives each view a camera of its own.
    """
    available = sorted(cameras)
    found: dict[tuple[int, ...], CameraOrder] = {}

    def add(rule: str, numbers: Sequence[int]) -> None:
        if len(set(numbers)) == len(numbers) and set(numbers) <= set(available):
            found.setdefault(tuple(numbers), CameraOrder(rule, tuple(numbers)))

    numbers = numbers_in(names)
    if numbers is not None:
        add("the numbers in the names", numbers)
        if 0 in available and min(numbers) > 0:
            add("the numbers in the names, counted from 1", [number - 1 for number in numbers])
        if not found:
            first = min(numbers) - available[0]
            add(f"the numbers in the names, counted from {first}", [number - first for number in numbers])
    for what, listed in {"": names, **(listings or {})}.items():
        if len(listed) != len(available) or not set(names) <= set(listed):
            continue
        of = f" of the {what}" if what else ""
        for rule, key in (("natural order", natural_key), ("the order of text (10 before 2)", _text_key)):
            place = {name: camera for name, camera in zip(sorted(listed, key=key), available)}
            add(rule + of, [place[name] for name in names])
    return list(found.values())


def choose_order(
    path: Path, candidates: Sequence[CameraOrder], fit: Callable[[Sequence[int]], Fit], has_rule: bool = False
) -> tuple[CameraOrder, list[str]]:
    """Choose between candidates by their fit to the maps.

    Args:
        path: camera file, for messages.
        candidates: at least one, the most usual first.
        fit: agreement of cameras with the maps, given the number of each view's camera.
        has_rule: whether the first candidate is the rule of the file's layout: it is then taken without a warning if it
            fits best, and with one if nothing fits.

    Returns:
        The best candidate, and at most one warning: that there was a choice, and how it was made.

    Raises:
        SceneError: There are several candidates without a rule, and none fits better than cameras in random order.
    """
    if len(candidates) == 1:
        return candidates[0], []
    fits = [fit(candidate.cameras) for candidate in candidates]
    scores = np.array([fit.score for fit in fits])
    usual = np.array(candidates[0].cameras)
    random_fits = [fit(usual[order].tolist()) for order in random_orders(len(usual))]
    best = int(scores.argmax())
    described = "; ".join(
        f"{candidate.rule}: {fit.silhouettes:.0%} of the silhouettes, {fit.normals:.0%} of the normals"
        for candidate, fit in zip(candidates, fits)
    )
    if not fits_better_than_random(fits[best], random_fits):
        problem = (
            f"{path}: the names leave open which camera belongs to which view, and no order fits the maps ({described})"
        )
        remedy = "name the views by the numbers of their cameras, with leading zeros, and check the cameras"
        if not has_rule:
            raise SceneError(f"{problem}; {remedy}")
        return candidates[0], [f"{problem}; they were assigned by {candidates[0].rule}; {remedy}"]
    if scores[best] - scores[0] < _MIN_MARGIN:
        best = 0
    is_decided = scores[best] - np.delete(scores, best).max() >= _MIN_MARGIN
    if is_decided and has_rule and best == 0:
        return candidates[0], []
    decision = "which fits the maps best" if is_decided else "but the maps fit another order as well"
    return candidates[best], [
        f"{path}: the names leave open which camera belongs to which view; they were assigned by {candidates[best].rule}, "
        f"{decision} ({described}); leading zeros in the names make it definite"
    ]


def random_orders(count: int) -> list[np.ndarray]:
    """A few random orders of cameras, always the same ones."""
    rng = np.random.default_rng(0)
    return [rng.permutation(count) for _ in range(_NUM_RANDOM)]


def fits_better_than_random(fit: Fit, random_fits: Iterable[Fit]) -> bool:
    """Whether cameras fit the maps as exact ones do, or clearly better than the same cameras in random orders.

    Those are not asked for if the fit is that of exact cameras.
    """
    if fit.silhouettes >= _MIN_SILHOUETTES or (fit.silhouettes >= 0.9 and fit.normals >= 0.7):
        return True
    base = float(np.mean([other.score for other in random_fits]))
    return fit.score >= base + _MIN_GAIN * (_BEST_SCORE - base)


def numbers_in(names: Sequence[str]) -> list[int] | None:
    """The number by which names differ, as in turn_7_left; None if they differ in something else."""
    parts = [re.split(r"([0-9]+)", name) for name in names]
    if len({len(part) for part in parts}) != 1 or len(parts[0]) < 2:
        return None
    varying = [i for i, column in enumerate(zip(*parts)) if len(set(column)) > 1]
    if len(parts) == 1:
        varying = [len(parts[0]) - 2]
    if len(varying) != 1 or varying[0] % 2 == 0:
        return None
    return [int(part[varying[0]]) for part in parts]


def _text_key(name: str) -> str:
    return f"{name}.png"  # as a listing of files is sorted

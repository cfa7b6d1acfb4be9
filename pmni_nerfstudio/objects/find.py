# SPDX-License-Identifier: Apache-2.0
"""Objects of a capture, from its label images and the common surface of all objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import trimesh
from jaxtyping import Bool, Float, Int

from pmni_nerfstudio.data.instances import INSTANCES
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.mesh import keep_large_components
from pmni_nerfstudio.objects.matching import CONSISTENT, consistency, match_labels, relabelled
from pmni_nerfstudio.objects.object_views import ObjectViews, views_of_object
from pmni_nerfstudio.objects.partition import owners, part_of
from pmni_nerfstudio.objects.visible_labels import visible_labels
from pmni_nerfstudio.registration.surface.sdf_grid import Surface

Labels = Literal["auto", "consistent", "match"]
_TOLERANCE_VOXELS = 1.5
_MIN_VIEWS = 3
"""Objects that fewer views show are left out: their surface and place are not determined."""
_MIN_COMPONENT = 0.05
"""Least area of a connected component of an object's part, relative to its largest one; others are errors of labels."""


@dataclass(frozen=True, eq=False)
class FoundObjects:
    """Objects of a capture."""

    labels: Int[np.ndarray, "n h w"]
    """Number of the object at every pixel, 0 where there is none."""
    objects: list[ObjectViews]
    consistency: float
    """Share of the observations of surface points that agree on the label as stored, 0 to 1."""
    matched: bool
    """Whether the labels as stored differ between views, so that the objects' numbers are new."""
    warnings: list[str]


def find_objects(
    scene: Scene,
    labels: Int[np.ndarray, "n h w"],
    c2w: Float[np.ndarray, "n 4 4"],
    surface: Surface,
    trusted: Bool[np.ndarray, " n"],
    mode: Labels,
) -> FoundObjects:
    """Decide which labels and which part of the common surface belong to which object.

    Args:
        scene: scene of all objects, with the intrinsics that belong to the poses.
        labels: label images as stored.
        c2w: camera-to-world poses of all views, OpenCV axes, unit-sphere world.
        surface: surface of all objects in that world.
        trusted: views whose poses are known; the others show no object.
        mode: whether labels mean the same in all views, or have to be matched; "auto" measures that.

    Raises:
        PmniError: no object is seen in enough views.
    """
    folder = scene.root / INSTANCES
    labels = np.where(trusted[:, None, None], labels, 0)
    mesh = trimesh.Trimesh(*surface.mesh, process=False)
    seen = visible_labels(mesh, labels, scene.K, c2w, _TOLERANCE_VOXELS * surface.voxel)
    agreement, warnings = consistency(seen), []
    matched = mode == "match" or (mode == "auto" and agreement < CONSISTENT)
    if matched:
        matching = match_labels(seen)
        labels = relabelled(labels, matching)
        seen = np.stack(
            [_mapped(row, {label: o for (v, label), o in matching.items() if v == i}) for i, row in enumerate(seen)]
        )
    elif agreement < CONSISTENT:
        warnings.append(
            f"{folder}: views agree on only {agreement:.0%} of the labels at the surface; if the numbers differ between "
            "views, leave it to the program to match them (--labels match)"
        )
    numbers, left_out = _seen_in_enough_views(labels, seen)
    warnings += [f"{folder}: {line}" for line in left_out]
    if not numbers:
        raise PmniError(
            f"{folder}: no object is seen in {_MIN_VIEWS} views; label each object in all views that show it"
        )
    owner = owners(mesh, seen, numbers, surface.voxel)
    objects = []
    for number in numbers:
        part = part_of(surface, mesh, owner == number) if (owner == number).any() else None
        if part is None or not part.exists:
            warnings.append(f"{folder}: object {number} is left out: the common surface has no part of it")
            continue
        solid = keep_large_components(trimesh.Trimesh(*part.mesh, process=False), _MIN_COMPONENT)
        objects.append(views_of_object(number, labels, scene.masks, solid, scene.K, c2w))
    return FoundObjects(labels, objects, agreement, matched, warnings)


def _seen_in_enough_views(
    labels: Int[np.ndarray, "n h w"], seen: Int[np.ndarray, "n p"]
) -> tuple[list[int], list[str]]:
    """Numbers of the objects that enough views show, and a warning for each of the others."""
    numbers, warnings = [], []
    for number in np.unique(labels[labels > 0]).tolist():
        shown = int((labels == number).any(axis=(1, 2)).sum())
        if shown < _MIN_VIEWS or not (seen == number).any():
            warnings.append(
                f"object {number} is left out: it is seen in {shown} views, at least {_MIN_VIEWS} are needed"
            )
        else:
            numbers.append(number)
    return numbers, warnings


def _mapped(row: Int[np.ndarray, " p"], objects: dict[int, int]) -> Int[np.ndarray, " p"]:
    """Labels of one view's points, replaced by the objects; others keep only their being zero or negative."""
    out = np.minimum(row, 0)
    for label, number in objects.items():
        out[row == label] = number
    return out

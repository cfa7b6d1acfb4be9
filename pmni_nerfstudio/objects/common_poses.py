# SPDX-License-Identifier: Apache-2.0
"""Poses of the views and the common surface of all objects, from everything rigid together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int

from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.model.initialization import Initialization
from pmni_nerfstudio.registration.pipeline import RegistrationSettings
from pmni_nerfstudio.registration.views import Views, views_of_scene
from pmni_nerfstudio.training.initialization import (
    initialize_by_registration,
    initialize_from_hull,
    initialize_from_normals,
)

_LEAST_PIXELS = 100
"""Least pixels of an object in every view for the views to be registered by it alone."""
_HULL_RESOLUTION, _HULL_VOTES = 129, 2


def register_objects(scene: Scene, labels: Int[np.ndarray, "n h w"], seed: int, cache: Path) -> Initialization:
    """Register the views of several rigid objects.

    Rough poses are refined with the masks and normals of all objects. Integrated depth maps do not help here: integration
    does not tell the depths of separate objects relative to each other. Without rough poses, or where they lead nowhere, the
    views are first registered by a single object, the largest that all views show, and then by all of them.

    Args:
        scene: scene of all objects.
        labels: labels of all pixels.
        seed: seed of the registration.
        cache: folder of cached registrations; created if necessary.

    Raises:
        PmniError: no registration succeeded.
    """
    views = views_of_scene(scene)
    joint = RegistrationSettings(seed=seed, pairwise=None)
    failure = "the scene has no poses, and no object has the same label in all views"
    if scene.c2w is not None:
        found = initialize_by_registration(views, scene.c2w, joint, cache, train_anyway=True)
        failure = _failure(found)
        if not failure:
            return found
    for label in _in_all_views(labels):
        single = initialize_by_registration(
            _views_of_label(views, labels, label), scene.c2w, RegistrationSettings(seed=seed), cache, train_anyway=True
        )
        found = initialize_by_registration(views, single.c2w, joint, cache, train_anyway=True)
        failure = _failure(found)
        if not failure:
            return found
    raise PmniError(
        f"{scene.root}: the views cannot be registered: {failure}; give rough poses, the same label for an object in all "
        "views, or accurate poses (--poses given)"
    )


def surface_at_given_poses(scene: Scene) -> Initialization:
    """The common surface of all objects at the poses of the scene.

    Raises:
        PmniError: the scene has no poses, or the masks have no visual hull at these.
    """
    if scene.c2w is None:
        raise PmniError(f"{scene.root}: has no poses; leave out --poses given")
    views = views_of_scene(scene)
    found = initialize_from_normals(views, scene.c2w)
    if found is None:
        found = initialize_from_hull(views.possible, views.K, scene.c2w, _HULL_RESOLUTION, _HULL_VOTES)
    if not bool((found.sdf < 0).any()):
        raise PmniError(f"{scene.root}: the masks have no visual hull at these poses; check the cameras and masks")
    return found


def _failure(found: Initialization) -> str:
    """Why a registration failed, empty if it did not."""
    assert found.registration is not None
    verdict = found.registration.verdict
    if not bool(torch.isfinite(found.sdf).all() and (found.sdf < 0).any()):
        return "there is no surface"
    return verdict.reasons[0] if verdict.name == "failed" else ""


def _in_all_views(labels: Int[np.ndarray, "n h w"]) -> list[int]:
    """Labels that every view shows, those of the largest objects first."""
    counts = {int(label): (labels == label).sum(axis=(1, 2)) for label in np.unique(labels[labels > 0])}
    shown = {label: float(np.median(count)) for label, count in counts.items() if count.min() >= _LEAST_PIXELS}
    return sorted(shown, key=lambda label: -shown[label])


def _views_of_label(views: Views, labels: Int[np.ndarray, "n h w"], label: int) -> Views:
    """Views of a single object; what else the masks show may hide it."""
    step = -(-labels.shape[1] // views.height)
    masks: Bool[np.ndarray, "n h w"] = labels[:, ::step, ::step] == label
    normals = np.where(masks[..., None], views.normals, 0).astype(np.float32)
    return Views(views.names, normals, masks, views.K, unknown=views.masks & ~masks)

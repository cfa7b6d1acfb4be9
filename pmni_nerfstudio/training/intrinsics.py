# SPDX-License-Identifier: Apache-2.0
"""Intrinsics that registration has refined, in everything that a run derives from them."""

from __future__ import annotations

from pmni_nerfstudio.data.datamanager import PmniDataManager
from pmni_nerfstudio.model.pmni_model import PmniModel
from pmni_nerfstudio.registration.intrinsics import RefinedIntrinsics


def take_over_intrinsics(model: PmniModel, datamanager: PmniDataManager, refined: RefinedIntrinsics) -> None:
    """Train with refined intrinsics, and keep their change in the model's checkpoints."""
    if not refined.applied:
        return
    given = model.views.K[0]
    dx, dy = refined.corrected(model.views.K)[0, :2, 2] - given[:2, 2]
    model.intrinsics_change = (float(refined.focal_factor), float(dx), float(dy))
    apply_intrinsics(model, datamanager)


def apply_intrinsics(model: PmniModel, datamanager: PmniDataManager) -> None:
    """Change the intrinsics of scene, cameras, rays and losses as the model's checkpoint says."""
    factor, dx, dy = model.intrinsics_change
    if (factor, dx, dy) == (1.0, 0.0, 0.0):
        return
    datamanager.correct_intrinsics(factor, (dx, dy))
    dataset = datamanager.train_dataset
    model.change_intrinsics(dataset.scene.K[list(dataset.views)])

# SPDX-License-Identifier: Apache-2.0
"""Corrections of normals and intrinsics that the initialization found, in everything that a run derives from them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from pmni_nerfstudio.data.datamanager import PmniDataManager
from pmni_nerfstudio.data.split_views import split_views_of
from pmni_nerfstudio.geometry.reflectance_bias import ReflectanceBias
from pmni_nerfstudio.model.initialization import Initialization
from pmni_nerfstudio.model.pmni_model import PmniModel


def take_over_corrections(model: PmniModel, datamanager: PmniDataManager, initialization: Initialization) -> None:
    """Train with corrected normals and intrinsics, and keep the corrections in the model's checkpoints."""
    if initialization.reflectance is not None:
        model.reflectance_bias = initialization.reflectance.bias.coefficients
    registration = initialization.registration
    if registration is not None and registration.intrinsics.applied:
        given = model.views.K
        dx, dy = (registration.intrinsics.corrected(given) - given)[0, :2, 2]
        model.intrinsics_change = (float(registration.intrinsics.focal_factor), float(dx), float(dy))
    apply_corrections(model, datamanager)


def take_over_normals(model: PmniModel, datamanager: PmniDataManager, normals: Float[np.ndarray, "n h w 3"]) -> None:
    """Train with other normals of the same pixels of the training views, and keep them in the model's checkpoints."""
    model.refined_normals = torch.from_numpy(normals[model.views.valid].astype(np.float16))
    apply_corrections(model, datamanager)


def apply_corrections(model: PmniModel, datamanager: PmniDataManager) -> None:
    """Correct the normals and intrinsics of scene, cameras, rays and losses as the model's checkpoint says."""
    bias, (factor, dx, dy) = ReflectanceBias(model.reflectance_bias), model.intrinsics_change
    refined = None if model.refined_normals is None else model.refined_normals.numpy()
    if bias.is_zero and (factor, dx, dy) == (1.0, 0.0, 0.0) and refined is None:
        return
    datamanager.correct_views(bias, factor, (dx, dy), refined)
    model.change_views(split_views_of(datamanager.train_dataset.metadata))

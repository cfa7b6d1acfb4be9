# SPDX-License-Identifier: Apache-2.0
"""Start-up of a training run: initialization, warm start, schedules and callbacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Optional, Protocol, cast

import numpy as np
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from pmni_nerfstudio.data.atomic import write_json
from pmni_nerfstudio.data.datamanager import PmniDataManager
from pmni_nerfstudio.data.split_views import SplitViews
from pmni_nerfstudio.errors import exit_on_error
from pmni_nerfstudio.geometry.transforms import nerfstudio_from_opencv
from pmni_nerfstudio.model.grid_levels import matching_schedule_steps
from pmni_nerfstudio.model.initialization import Initialization
from pmni_nerfstudio.model.pmni_model import PmniModel
from pmni_nerfstudio.registration.bundle_adjustment.pose_steps import PoseSteps
from pmni_nerfstudio.registration.statistics import STATISTICS, registration_statistics
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views, views_of_scene
from pmni_nerfstudio.training.controller import RunController
from pmni_nerfstudio.training.corrections import take_over_corrections, take_over_normals
from pmni_nerfstudio.training.initialization import find_initialization
from pmni_nerfstudio.training.lr_schedule import scale_learning_rate, set_schedule_length
from pmni_nerfstudio.training.photometric_normals import FromImages, refine_from_images


class BlockPipeline(Protocol):
    """Pipeline that reconstructs the blocks of a large scene in processes of their own."""

    def reconstruct_blocks(self, trainer: Trainer, views: Views, initialization: Initialization, parent: Path) -> None:
        """Fill the model's field with the blocks of an initial surface.

        Args:
            trainer: trainer of the run.
            views: training views, with corrected normals and intrinsics.
            initialization: their poses and the surface.
            parent: folder of the blocks of an experiment's runs.

        Raises:
            PmniError: a block could not be reconstructed.
        """


SHARED = "registrations"
"""Folder beside the runs of an experiment with their registrations, by data and settings."""
_POSE_STEPS = 2
"""Gauss-Newton steps of the poses before and after the training of blocks. On a relief of 12 views, they lowered the mean
rotation error from 0.028 to 0.013 and 0.010 deg; further steps changed nothing."""
BLOCKS = "blocks"
"""Folder beside the runs of an experiment with the blocks of their large scenes, likewise."""


def start_up(trainer: Trainer, resumed_state: Optional[Dict[str, Any]]) -> RunController:
    """Prepare a run for its first step; a new run is initialized, which includes registration if configured.

    Args:
        trainer: Trainer after its setup, with the checkpoint loaded if the run is resumed.
        resumed_state: State of the `RunController` in that checkpoint; None for a new run.

    Returns:
        The run's controller, whose callbacks the trainer now calls.

    Raises:
        SystemExit: The views cannot be initialized; with code 1, after one line on stderr.
    """
    model = trainer.pipeline.model
    assert isinstance(model, PmniModel)
    in_blocks = model.field.blocks is not None
    moves_poses = _moves_poses(model) and not in_blocks
    # In single precision, these take several times the memory of the scene's maps: only if needed.
    views = views_of_scene(model.views) if resumed_state is None or moves_poses else None

    if resumed_state is None:
        assert views is not None
        views = _initialize(trainer, model, views)
    if model.registration_statistics is not None:
        with exit_on_error():
            write_json(trainer.base_dir / STATISTICS, model.registration_statistics)
    inliers = model.inlier_indices()
    if len(inliers) < model.views.num_views:
        datamanager = trainer.pipeline.datamanager
        assert isinstance(datamanager, PmniDataManager)
        datamanager.draw_from(inliers)

    schedule_steps = _schedule_steps(model, trainer.config.max_num_iterations)
    set_schedule_length(trainer.optimizers.schedulers, schedule_steps)

    pose_steps, moving = None, inliers
    if moves_poses:
        assert views is not None
        # The poses of close-ups are adjusted on their detail, which the surface of pose steps does not have.
        close_ups = model.views.close_ups
        moving = [i for i in inliers if not close_ups[i]]
        pose_steps = PoseSteps(views.subset(moving), seed=model.config.registration_seed)
    controller = RunController(trainer, model, pose_steps, schedule_steps, moving)
    if resumed_state is not None:
        controller.load_state_dict(resumed_state)
    if in_blocks:
        trainer.config.max_num_iterations = 0  # the blocks have been trained
        controller.converged = None
    trainer.callbacks += controller.callbacks()
    return controller


def _initialize(trainer: Trainer, model: PmniModel, views: Views) -> Views:
    """Find the initial poses and surface, and warm-start the model with them.

    Returns:
        The views, with the corrections of normals and intrinsics.
    """
    page = getattr(trainer.pipeline, "page", None)
    with exit_on_error():
        folder = trainer.base_dir
        initialization = find_initialization(model, views, folder / "registration", page, folder.parent / SHARED)
    registration, reflectance = initialization.registration, initialization.reflectance
    if registration is not None:
        model.registration_statistics = registration_statistics(registration, model.views.names, model.views.K)
    datamanager = trainer.pipeline.datamanager
    assert isinstance(datamanager, PmniDataManager)
    take_over_corrections(model, datamanager, initialization)
    if reflectance is not None and reflectance.applied:
        views = reflectance.removed_from(views)
        CONSOLE.log("Training uses the corrected normals, and so does evaluation of the run.")
    if registration is not None and registration.intrinsics.applied:
        views = replace(views, K=registration.intrinsics.corrected(views.K))
        CONSOLE.log("Training uses the corrected intrinsics, and so do evaluation and exports of the run.")
    from_images: Optional[FromImages] = getattr(trainer.pipeline, "normals_from_images", None)
    if from_images is not None and model.config.refine_normals:
        with exit_on_error():
            refined = refine_from_images(model.views, initialization, from_images)
        if refined is not None:
            initialization = refined.initialization
            take_over_normals(model, datamanager, refined.normals)
            views = views_of_scene(model.views)
    if model.field.blocks is not None:
        _train_in_blocks(trainer, model, views, initialization)
    else:
        model.warm_start(initialization)
    if initialization.kind != "hull":
        scale_learning_rate(trainer.optimizers.schedulers["sdf"], model.config.detailed_lr_factor)
    return views


def _moves_poses(model: PmniModel) -> bool:
    """Whether Gauss-Newton steps move the poses."""
    return model.uses_registration and model.config.registered_poses == "gauss-newton"


def _train_in_blocks(trainer: Trainer, model: PmniModel, views: Views, initialization: Initialization) -> None:
    """Fill the model's field with blocks, trained at the initial poses, and refine these before and after."""
    inliers = np.arange(len(views)) if initialization.inlier_views is None else initialization.inlier_views.nonzero()[0]
    steps = PoseSteps(views.subset(list(inliers)), seed=model.config.registration_seed) if _moves_poses(model) else None

    def with_refined_poses(sdf: Tensor) -> Initialization:
        surface, c2w = Surface(sdf.cpu().numpy()), initialization.c2w.copy()
        for _ in range(_POSE_STEPS if steps is not None and surface.exists else 0):
            assert steps is not None
            c2w[inliers] = steps.step(surface, c2w[inliers])
        return replace(initialization, c2w=c2w)

    initialization = with_refined_poses(initialization.sdf)
    with exit_on_error():
        pipeline, parent = cast(BlockPipeline, trainer.pipeline), trainer.base_dir.parent / BLOCKS
        pipeline.reconstruct_blocks(trainer, views, initialization, parent)
    model.warm_start(initialization)
    if steps is not None:
        refined = with_refined_poses(model.field.volume(len(initialization.sdf)))
        model.camera_optimizer.set_start(nerfstudio_from_opencv(refined.c2w).to(model.device))


def _schedule_steps(model: PmniModel, max_steps: int) -> int:
    """Length of the schedules: shorter than the run if it starts from a detailed surface."""
    if model.initialization_kind != "surface":
        return max_steps
    return min(max_steps, model.config.schedule_steps or _matching_steps(model.views))


def _matching_steps(views: SplitViews) -> int:
    """Length of the schedule that matches the maps: views of the whole object get as many patches as without close-ups."""
    whole = ~views.close_ups
    pixels = views.height * views.width
    if views.sizes is not None:
        pixels = int(np.median(views.sizes[whole].prod(axis=1)))
    return round(matching_schedule_steps(pixels) / whole.mean())

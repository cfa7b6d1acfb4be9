# SPDX-License-Identifier: Apache-2.0
"""The course of a training run around its steps: what it starts from, its schedule, pose steps, and when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional

import numpy as np
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils.rich_utils import CONSOLE

from pmni_nerfstudio.data.datamanager import PmniDataManager
from pmni_nerfstudio.errors import exit_on_error
from pmni_nerfstudio.geometry.transforms import nerfstudio_from_opencv
from pmni_nerfstudio.model.grid_levels import fitting_steps
from pmni_nerfstudio.registration.bundle_adjustment.pose_steps import PoseSteps
from pmni_nerfstudio.registration.pipeline import RegistrationSettings
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views, views_of_scene
from pmni_nerfstudio.training.convergence import Convergence
from pmni_nerfstudio.training.initialization import Start, start_from_masks, start_from_registration
from pmni_nerfstudio.training.lr_schedule import scale_rate, set_run_length
from pmni_nerfstudio.training.random_state import restore_random_state

if TYPE_CHECKING:
    from pmni_nerfstudio.model.pmni_model import PmniModel

SHARP_AT = 0.9
"""Fraction of the schedule at which sharpness has run its course."""
MOST_VERTICES = 257
"""Per axis of the surface that poses are stepped against."""


class Course:
    """Starts a run, unless it is resumed, and then stands before and after each of its steps.

    Args:
        model: that is trained.
        trainer: of the run, set up but for its callbacks.
        resumed: the model's extra state of the checkpoint that the run goes on from.

    Raises:
        SystemExit: the scene can't be started from; one line on stderr says why.
    """

    def __init__(self, model: PmniModel, trainer: Trainer, resumed: Optional[Dict[str, Any]]) -> None:
        self.model, self.config, self.trainer = model, model.config, trainer
        moves = model.registers and self.config.registered_poses == "gauss-newton"
        first = trainer._start_step == 0
        views = views_of_scene(model.views) if first or moves else None
        if first:
            assert views is not None
            with exit_on_error():
                start = self._start(views)
            model.warm_start(start)
            if start.kind != "hull":
                scale_rate(trainer.optimizers.schedulers["sdf"], self.config.detailed_lr_factor)
        self.trusted = np.flatnonzero(model.trusted.cpu().numpy())
        if len(self.trusted) < model.views.num_views:
            datamanager = trainer.pipeline.datamanager
            assert isinstance(datamanager, PmniDataManager)
            datamanager.draw_from(self.trusted.tolist())
        self.cap = trainer.config.max_num_iterations
        self.length = self._schedule_steps()
        set_run_length(trainer.optimizers.schedulers, self.length)
        self.pose_steps = None
        if moves:
            assert views is not None
            self.pose_steps = PoseSteps(views.subset(self.trusted.tolist()), seed=self.config.registration_seed)
        self.convergence = None
        if self.config.converged_normals_deg > 0:
            self.convergence = Convergence(model.views.masks, model.views.K)
        self.done = trainer._start_step
        """Steps made since the run's first."""
        self._random: Optional[Dict[str, Any]] = None
        if resumed is not None:
            self._random = resumed["random"]
            self._set_state(resumed["course"])

    def callbacks(self) -> List[TrainingCallback]:
        """For the trainer."""
        return [
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self.before),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self.after),
        ]

    def state(self) -> Dict[str, Any]:
        """For the checkpoint."""
        return {
            "pose_steps": None if self.pose_steps is None else self.pose_steps.rng.bit_generator.state,
            "convergence": None if self.convergence is None else self.convergence.last,
        }

    def _set_state(self, state: Optional[Dict[str, Any]]) -> None:
        if state is None:
            return
        if self.pose_steps is not None and state["pose_steps"] is not None:
            self.pose_steps.rng.bit_generator.state = state["pose_steps"]
        if self.convergence is not None and state["convergence"] is not None:
            self.convergence.last = tuple(value.to(self.model.device) for value in state["convergence"])

    def before(self, step: int) -> None:
        """A step of the poses at intervals, the schedule, and a refresh of the occupancy grid at intervals."""
        if self._random is not None:  # setting up has drawn numbers that the run which never stopped didn't
            restore_random_state(self._random)
            self._random = None
        model, every = self.model, self.config.steps_per_pose_step
        if self.pose_steps is not None and step % every == every - 1:
            self._step_poses(self.pose_steps)
        model.set_fraction(min(step / self.length, 1.0))
        if step % self.config.steps_per_grid_update == 0:
            model.grid.refresh(model.field.sdf, margin=model.half_width())

    def after(self, step: int) -> None:
        """Ends the run once it has converged, or with its last step.

        nerfstudio trains max_num_iterations *more* steps after a resume; here they count from the first.
        """
        self.done = done = step + 1
        model, config = self.model, self.config
        ends = done >= self.cap
        if self.convergence is not None and done % config.steps_per_grid_update == 0 and done >= SHARP_AT * self.length:
            change = self.convergence.check(model.field, model.grid, model.camera_optimizer.c2w())
            if change is not None and change.within(config.converged_normals_deg, config.converged_poses_deg):
                ends = True
                CONSOLE.log(f"Converged after {done} steps: {change}.")
            elif change is not None and ends:
                CONSOLE.log(f"Not converged after {done} steps, the most allowed: {change}.")
        if ends:
            self.trainer.stop_training = True

    def _start(self, views: Views) -> Start:
        model, config = self.model, self.config
        given = model.views
        if model.registers:
            rough = given.c2w if given.has_poses else None
            settings, cache = RegistrationSettings(config.registration_seed), self.trainer.base_dir / "registration"
            watcher = getattr(self.trainer.pipeline, "watcher", None)
            return start_from_registration(views, rough, settings, cache, CONSOLE, watcher)
        n, votes = config.hull_resolution, config.hull_votes
        return start_from_masks(given.root, views, given.c2w, n, votes, model.start_wanted, CONSOLE)

    def _schedule_steps(self) -> int:
        if self.model.start_kind != "surface":
            return self.cap
        return min(self.cap, self.config.schedule_steps or fitting_steps(self.model.supervision.pixels))

    def _step_poses(self, pose_steps: PoseSteps) -> None:
        model = self.model
        poses = model.camera_optimizer
        volume = model.field.volume(min(model.field.levels.vertices[-1], MOST_VERTICES))
        surface = Surface(volume.cpu().numpy())
        if surface.exists:
            c2w = poses.c2w_opencv_double()
            c2w[self.trusted] = pose_steps.step(surface, c2w[self.trusted])
            poses.set_start(nerfstudio_from_opencv(c2w).to(model.device))

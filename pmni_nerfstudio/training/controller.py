# SPDX-License-Identifier: Apache-2.0
"""Control of a run before and after each training step."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils.rich_utils import CONSOLE

from pmni_nerfstudio.geometry.transforms import nerfstudio_from_opencv
from pmni_nerfstudio.model.pmni_model import SHARPNESS_RAMP_END, PmniModel
from pmni_nerfstudio.registration.bundle_adjustment.pose_steps import PoseSteps
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.training.convergence import ConvergenceMonitor
from pmni_nerfstudio.training.random_state import random_state, restore_random_state

MAX_POSE_STEP_VERTICES = 257
"""Maximum number of grid vertices per axis of the surface that Gauss-Newton steps align the poses with."""


class RunController:
    """Callbacks of a training run: Gauss-Newton steps of the poses, schedules, occupancy grid and early stopping.

    Args:
        trainer: Trainer of the run.
        model: Model that is trained.
        pose_steps: Gauss-Newton steps of poses; None to leave the poses to the model.
        schedule_steps: Number of steps over which sharpness and loss weights complete their schedule.
        moving: Indices of the training views that the pose steps move.
    """

    def __init__(
        self,
        trainer: Trainer,
        model: PmniModel,
        pose_steps: Optional[PoseSteps],
        schedule_steps: int,
        moving: Sequence[int],
    ) -> None:
        self.trainer, self.model, self.pose_steps = trainer, model, pose_steps
        self._moving = np.array(moving)
        self.schedule_steps = schedule_steps
        self.max_steps = trainer.config.max_num_iterations
        self.steps_done = trainer._start_step
        """Number of completed steps, including those before a resume."""
        self.convergence = None
        if model.config.converged_normals_deg > 0:
            self.convergence = ConvergenceMonitor(model.views.masks, model.views.K)
        self.converged = None if self.convergence is None else False
        """Whether training has converged; None if that is not checked."""
        self._random_state: Optional[Dict[str, Any]] = None

    def callbacks(self) -> List[TrainingCallback]:
        """Callbacks for the trainer."""
        return [
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self.before_step),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self.after_step),
        ]

    def state_dict(self) -> Dict[str, Any]:
        """State that a resumed run needs, besides those of model and optimizers, to continue as if never interrupted."""
        return {
            "pose_steps": None if self.pose_steps is None else self.pose_steps.rng.bit_generator.state,
            "convergence": None if self.convergence is None else self.convergence.previous,
            "random": random_state(),
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Restore the state of a checkpoint; that of the random generators just before the first step."""
        if self.pose_steps is not None and state["pose_steps"] is not None:
            self.pose_steps.rng.bit_generator.state = state["pose_steps"]
        if self.convergence is not None and state["convergence"] is not None:
            self.convergence.previous = tuple(value.to(self.model.device) for value in state["convergence"])
        self._random_state = state["random"]

    def before_step(self, step: int) -> None:
        """Advance the schedules; at intervals, move the poses and refresh the occupancy grid."""
        if self._random_state is not None:  # the setup of a resumed run draws numbers that must not count
            restore_random_state(self._random_state)
            self._random_state = None
        model, interval = self.model, self.model.config.steps_per_pose_step
        if self.pose_steps is not None and step % interval == interval - 1:
            self._move_poses(self.pose_steps)
        model.set_fraction(min(step / self.schedule_steps, 1.0))
        if step % model.config.steps_per_grid_update == 0:
            model.grid.refresh(model.field.sdf, margin=model.sample_half_width())

    def after_step(self, step: int) -> None:
        """Stop the run once it has converged, or after the maximum number of steps.

        nerfstudio trains max_num_iterations *additional* steps after a resume; here the steps before it count as well.
        """
        self.steps_done = step + 1
        stop = self.steps_done >= self.max_steps
        if self._is_check_due():
            assert self.convergence is not None
            model, config = self.model, self.model.config
            change = self.convergence.check(model.field, model.grid, model.camera_optimizer.c2w())
            if change is not None and change.within(config.converged_normals_deg, config.converged_poses_deg):
                CONSOLE.log(f"Converged after {self.steps_done} steps: {change}.")
                self.converged = stop = True
            elif change is not None and stop:
                CONSOLE.log(f"Not converged after the maximum of {self.steps_done} steps: {change}.")
        if stop:
            self.trainer.stop_training = True

    def _is_check_due(self) -> bool:
        """Whether convergence is checked after this step: at intervals, once the sharpness has reached its maximum."""
        return (
            self.convergence is not None
            and self.steps_done % self.model.config.steps_per_grid_update == 0
            and self.steps_done >= SHARPNESS_RAMP_END * self.schedule_steps
        )

    def _move_poses(self, pose_steps: PoseSteps) -> None:
        """Take a Gauss-Newton step of the poses against the current surface."""
        model = self.model
        poses = model.camera_optimizer
        volume = model.field.volume(min(model.field.levels.vertices[-1], MAX_POSE_STEP_VERTICES))
        surface = Surface(volume.cpu().numpy())
        if surface.exists:
            c2w = poses.c2w_opencv_double()
            c2w[self._moving] = pose_steps.step(surface, c2w[self._moving])
            poses.set_start(nerfstudio_from_opencv(c2w).to(model.device))

# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's trainer with explicit start-up, atomic checkpoints, and a stop at values that are not finite."""

from __future__ import annotations

import os
import tempfile
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Protocol, Sequence, Type, cast

import torch
import yaml
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT, Trainer, TrainerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.cuda.amp.grad_scaler import GradScaler

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.dataparser import PmniDataParserConfig
from pmni_nerfstudio.data.files import reason
from pmni_nerfstudio.data.scene import default_normals_folder
from pmni_nerfstudio.errors import PmniError, exit_on_error, hide_dependency_warnings
from pmni_nerfstudio.interrupts import Interrupts, command_to_resume, exit_interrupted
from pmni_nerfstudio.training.checks import check_start
from pmni_nerfstudio.training.controller import RunController
from pmni_nerfstudio.training.lock import TrainingLock
from pmni_nerfstudio.training.progress import RunMessages
from pmni_nerfstudio.training.startup import start_up
from pmni_nerfstudio.training.trained_run import latest_checkpoint

NOT_FINITE_FILE = "not_finite.pt"
"""File in the run's folder with the batch and the losses of a step whose values were not finite."""
_RUN_STATE = "run"
"""Entry of a checkpoint with the state of the `RunController`."""


class NotFiniteError(Exception):
    """A loss or a gradient is NaN or infinite; the message names it."""


@dataclass
class PmniTrainerConfig(TrainerConfig):
    """Configuration of a training run."""

    _target: Type = field(default_factory=lambda: PmniTrainer)
    """Target class to instantiate."""

    def save_config(self) -> None:
        """Write config.yml to the run's folder atomically, with the absolute path of the data and the chosen normals.

        This is ns-train's first step. What the run cannot start without is checked before the folder is made.

        Raises:
            SystemExit: The device, the data or the checkpoint does not exist; with code 1, after one line on stderr.
        """
        with exit_on_error():
            check_start(self)
        folder = self.get_base_dir()
        folder.mkdir(parents=True, exist_ok=True)
        CONSOLE.log(f"Saving config to: {folder / 'config.yml'}")
        with atomic_path(folder / "config.yml") as path:
            path.write_text(yaml.dump(_with_definite_data(self)), "utf8")


def _with_definite_data(config: PmniTrainerConfig) -> PmniTrainerConfig:
    """A copy of a config that means the same data in any working directory."""
    config = deepcopy(config)
    manager: Any = config.pipeline.datamanager
    for part in (config, manager, manager.dataparser):
        data: Any = getattr(part, "data", None)
        if data not in (None, Path()):
            part.data = Path(data).absolute()
    parser = manager.dataparser
    if isinstance(parser, PmniDataParserConfig) and parser.normals_folder is None:
        parser.normals_folder = default_normals_folder(Path(manager.data or parser.data))
    return config


class Page(Protocol):
    """Live page that follows the training."""

    def begin(self) -> None:
        """Called when training begins."""

    def update(self, step: int) -> None:
        """Called after each step."""

    def finish(self, lines: Sequence[str]) -> None:
        """Called when training has ended, with lines about its result."""

    def close(self) -> None:
        """Called when the page closes."""


class CheckedOptimizers(Optimizers):
    """Optimizers that clip gradients as configured and never step with a gradient that is not finite."""

    def optimizer_scaler_step_some(self, grad_scaler: GradScaler, param_groups: List[str]) -> None:
        """Step the optimizers of all given groups, or of none.

        Raises:
            NotFiniteError: A gradient is not finite; no parameter has changed.
        """
        norms: Dict[str, Tensor] = {}
        active = [name for name in param_groups if any(p.grad is not None for p in self.parameters[name])]
        for name in active:
            grad_scaler.unscale_(self.optimizers[name])
            limit = self.config[name]["optimizer"].max_norm
            norms[name] = torch.nn.utils.clip_grad_norm_(
                self.parameters[name], float("inf") if limit is None else limit
            )
        # With half precision, the scaler handles infinite gradients: it skips the step and reduces the scale.
        if norms and not grad_scaler.is_enabled() and not bool(torch.stack(list(norms.values())).isfinite().all()):
            bad = [name for name, norm in norms.items() if not bool(norm.isfinite())]
            raise NotFiniteError(f"the gradient of {', '.join(bad)}")
        for name in active:
            grad_scaler.step(self.optimizers[name])


class PmniTrainer(Trainer):
    """Trainer of PMNI's methods.

    `setup` initializes the run (registration included), checkpoints are written atomically, values that are not finite
    end the training with the last good state saved, and viewer threads share the training's time fairly.
    """

    def __init__(self, config: TrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        hide_dependency_warnings()
        super().__init__(config, local_rank, world_size)
        # nerfstudio uses the lock only as a context manager, which TrainingLock is.
        self.train_lock = cast(Any, TrainingLock(lambda: self.training_state == "training"))
        self.controller: Optional[RunController] = None
        """Controller of the run; None until it has started up."""
        self._resumed_state: Optional[Dict[str, Any]] = None
        self._interrupts = Interrupts()
        self._is_stopping = False

    @property
    def stop_training(self) -> bool:
        """Whether training stops before the next step: nerfstudio's flag, or Ctrl-C."""
        return self._is_stopping or self._interrupts.requested

    @stop_training.setter
    def stop_training(self, stop: bool) -> None:
        self._is_stopping = stop

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Build pipeline, optimizers and viewer, load the checkpoint of a resumed run, and start up the run.

        Raises:
            SystemExit: The run cannot start; with code 1, after one line on stderr. With code 130 after Ctrl-C.
        """
        try:
            with self._interrupts.handled("raise"):
                if not CONSOLE.is_terminal:  # nerfstudio's table moves the cursor; RunMessages prints lines instead
                    self.config.logging.local_writer.enable = False
                super().setup(test_mode)
                self.controller = start_up(self, self._resumed_state)
                finish = None if self._page is None else self._page.finish
                self.callbacks += RunMessages(self.controller, self.base_dir, finish).callbacks()
        except KeyboardInterrupt:
            self._close_page()
            raise exit_interrupted(f"stopped before the first step; go on with: {self._command(None)}") from None
        except BaseException:
            self._close_page()
            raise

    def train(self) -> None:
        """Train to the end, or to Ctrl-C, which saves a checkpoint.

        Raises:
            SystemExit: Training failed; with code 1, after one line on stderr. With code 130 after Ctrl-C.
        """
        try:
            with self._interrupts.handled("request"):
                super().train()
        finally:
            self.training_state = "completed"  # the page's threads no longer share the time with training
            self._close_page()
        if self._interrupts.requested:
            steps = self._steps_done
            saved = self.checkpoint_dir if steps > self._start_step else None
            raise exit_interrupted(f"stopped at step {steps}; go on with: {self._command(saved)}")

    @property
    def _steps_done(self) -> int:
        return self._start_step if self.controller is None else self.controller.steps_done

    def _command(self, checkpoints: Optional[Path]) -> str:
        """Command that goes on with this run from its checkpoints, or anew."""
        manager: Any = self.config.pipeline.datamanager
        return command_to_resume(str(self.config.method_name), manager.data or manager.dataparser.data, checkpoints)

    def setup_optimizers(self) -> Optimizers:
        """Optimizers of the pipeline's parameter groups."""
        return CheckedOptimizers(self.config.optimizers.copy(), self.pipeline.get_param_groups())

    # ---- checkpoints ----

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Write a checkpoint with nerfstudio's entries and the state of the run's controller.

        All threads save checkpoints here, one at a time, and none during a training step. A checkpoint is written to
        another folder and then moved, so that no incomplete one is ever found; older ones are deleted
        (`save_only_latest_checkpoint`) only afterwards.
        """
        with self.train_lock:
            self._write_checkpoint(step)

    def _write_checkpoint(self, step: int) -> None:
        state = {
            "step": step,
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
            _RUN_STATE: None if self.controller is None else self.controller.state_dict(),
        }
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.base_dir, prefix=".checkpoint-") as folder:
            # Not in the folder of the checkpoints, of which nerfstudio takes every name for that of a checkpoint.
            torch.save(state, Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("*.ckpt"):
                if other != path:
                    other.unlink(missing_ok=True)  # another run in this folder may already have deleted it

    def _load_checkpoint(self) -> None:
        """Load the checkpoint of a resumed run, and keep the controller's state for `start_up`."""
        super()._load_checkpoint()
        folder, path = self.config.load_dir, self.config.load_checkpoint
        if folder is not None:
            step = self.config.load_step
            path = latest_checkpoint(folder) if step is None else folder / f"step-{step:09d}.ckpt"
        if path is not None:
            self._resumed_state = torch.load(path, map_location="cpu", weights_only=True)[_RUN_STATE]

    # ---- live page ----

    @property
    def _page(self) -> Optional[Page]:
        """Live page of the pipeline, if any."""
        return getattr(self.pipeline, "page", None)

    def _init_viewer_state(self) -> None:
        """Admit the viewer and notify the page: training begins."""
        cast(TrainingLock, self.train_lock).open()
        super()._init_viewer_state()
        if self._page is not None:
            self._page.begin()

    def _update_viewer_state(self, step: int) -> None:
        """Notify the page, instead of nerfstudio's update, which blocks training while the viewer's camera moves."""
        if self._page is not None:
            self._page.update(step)
        else:
            super()._update_viewer_state(step)

    def _after_train(self) -> None:
        """Save the last checkpoint, under the number of the last completed step; then keep the page open if configured."""
        self.training_state = "completed"
        self.step = max(self._steps_done - 1, 0)
        if not self._interrupts.requested:
            super()._after_train()
        elif self._steps_done > self._start_step:
            self.save_checkpoint(self.step)
            writer.write_out_storage()

    def _train_complete_viewer(self) -> None:
        """Keep the page open until Ctrl-C."""
        try:
            with Interrupts().handled("raise"):
                super()._train_complete_viewer()
        except KeyboardInterrupt:
            return

    def _close_page(self) -> None:
        pipeline = getattr(self, "pipeline", None)  # absent if the setup has failed early
        page: Optional[Page] = getattr(pipeline, "page", None)
        if page is not None:
            page.close()

    # ---- steps ----

    def train_iteration(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """Train one step; if it fails, save the state before it and exit.

        Raises:
            SystemExit: A value is not finite, or the GPU's memory is exhausted; with code 1, after one line on stderr.
        """
        try:
            return super().train_iteration(step)
        except NotFiniteError as error:
            with exit_on_error():
                raise self._not_finite(step, error) from None
            raise
        except torch.cuda.OutOfMemoryError as error:
            with exit_on_error():
                raise self._out_of_memory(step, error) from None
            raise

    def _not_finite(self, step: int, error: NotFiniteError) -> PmniError:
        """Save the batch of a step and the state before it; the error to report."""
        with atomic_path(self.base_dir / NOT_FINITE_FILE) as path:
            torch.save({"step": step, **getattr(self.pipeline, "last_step", {})}, path)
        saved = self._save_state_before(step)
        return PmniError(
            f"{self.base_dir}: training stopped at step {step}: {error} is not finite; {saved}"
            f"the batch is in {self.base_dir / NOT_FINITE_FILE}; lower the learning rates, or report both files"
        )

    def _out_of_memory(self, step: int, error: torch.cuda.OutOfMemoryError) -> PmniError:
        """Save the state before a step; the error to report."""
        rays = getattr(self.config.pipeline.datamanager, "train_num_rays_per_batch")
        return PmniError(
            f"{self.base_dir}: training stopped at step {step}: the GPU's memory is exhausted ({reason(error)[:120]}); "
            f"{self._save_state_before(step)}lower --pipeline.datamanager.train-num-rays-per-batch ({rays} now), "
            "--pipeline.model.samples-per-ray, or the field's levels (--pipeline.model.sdf-field.grid-vertices, "
            ".hash-levels, .hash-log2-table)"
        )

    def _save_state_before(self, step: int) -> str:
        """Save the state before a step; the clause of the error message that says where. Empty at the first step."""
        if step == 0:
            return ""
        self.save_checkpoint(step - 1)
        return f"the state before it is in {self.checkpoint_dir}; "

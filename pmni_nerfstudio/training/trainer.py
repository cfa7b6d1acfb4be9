# SPDX-License-Identifier: Apache-2.0
"""nerfstudio's Trainer, whose checkpoints are whole or not there, and which stops where numbers stop being numbers."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Protocol, Type, cast

import torch
import yaml
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT, Trainer, TrainerConfig
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.cuda.amp.grad_scaler import GradScaler

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.files import reason
from pmni_nerfstudio.errors import PmniError, exit_on_error
from pmni_nerfstudio.training.lock import TrainingLock

BATCH_FILE = "not_finite.pt"
"""In a run's folder: the batch and the losses of the step that ended it."""


class NotFiniteError(Exception):
    """A loss or a gradient is NaN or infinite: what of it, in words."""


@dataclass
class PmniTrainerConfig(TrainerConfig):
    """Of a run."""

    _target: Type = field(default_factory=lambda: PmniTrainer)
    """Target class to instantiate."""

    def save_config(self) -> None:
        """config.yml in the run's folder: whole or not there."""
        folder = self.get_base_dir()
        folder.mkdir(parents=True, exist_ok=True)
        CONSOLE.log(f"Saving config to: {folder / 'config.yml'}")
        with atomic_path(folder / "config.yml") as path:
            path.write_text(yaml.dump(self), "utf8")


class Page(Protocol):
    """What the training tells a page that shows it."""

    def begin(self) -> None:
        """Training begins."""

    def update(self, step: int) -> None:
        """A step is done."""

    def finish(self) -> None:
        """Training has ended, and the page stays."""

    def close(self) -> None:
        """Training has ended, and so has the page."""


class CheckedOptimizers(Optimizers):
    """Clips gradients as configured, and makes no step with one that isn't finite."""

    def optimizer_scaler_step_some(self, grad_scaler: GradScaler, param_groups: List[str]) -> None:
        """A step of these groups, or of none.

        Raises:
            NotFiniteError: naming the groups; no parameter has changed.
        """
        norms: Dict[str, Tensor] = {}
        learning = [name for name in param_groups if any(p.grad is not None for p in self.parameters[name])]
        for name in learning:
            grad_scaler.unscale_(self.optimizers[name])
            most = self.config[name]["optimizer"].max_norm
            norms[name] = torch.nn.utils.clip_grad_norm_(self.parameters[name], float("inf") if most is None else most)
        # With a scaler (half precision) an infinite gradient is its business: it skips the step and scales less.
        if norms and not grad_scaler.is_enabled() and not bool(torch.stack(list(norms.values())).isfinite().all()):
            bad = [name for name, norm in norms.items() if not bool(norm.isfinite())]
            raise NotFiniteError(f"the gradient of {', '.join(bad)}")
        for name in learning:
            grad_scaler.step(self.optimizers[name])


class PmniTrainer(Trainer):
    """See above."""

    def __init__(self, config: TrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        super().__init__(config, local_rank, world_size)
        # Of the lock nerfstudio asks for no more than `with` and its callers: see TrainingLock.
        self.train_lock = cast(Any, TrainingLock(lambda: self.training_state == "training"))

    @property
    def _page(self) -> Optional[Page]:
        """Where there is one."""
        return getattr(self.pipeline, "watcher", None)

    def _init_viewer_state(self) -> None:
        """Training begins."""
        cast(TrainingLock, self.train_lock).open()
        super()._init_viewer_state()
        if self._page is not None:
            self._page.begin()

    def _update_viewer_state(self, step: int) -> None:
        """In the place of nerfstudio's, which has training wait while the camera moves."""
        if self._page is not None:
            self._page.update(step)
        else:
            super()._update_viewer_state(step)

    def _after_train(self) -> None:
        """Training has ended, and so has the page, unless it is to stay."""
        super()._after_train()
        if self._page is not None:
            self._page.close()

    def _train_complete_viewer(self) -> None:
        """Training has ended, and the page stays."""
        if self._page is not None:
            self._page.finish()
        super()._train_complete_viewer()

    def setup_optimizers(self) -> Optimizers:
        """Of the pipeline's parameter groups."""
        return CheckedOptimizers(self.config.optimizers.copy(), self.pipeline.get_param_groups())

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Written elsewhere in the run's folder, then put in its place; only then do older ones go."""
        final = self.checkpoint_dir
        final.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.base_dir, prefix=".checkpoint-") as folder:
            self.checkpoint_dir = Path(folder)
            try:
                super().save_checkpoint(step)
            finally:
                self.checkpoint_dir = final
            (written,) = Path(folder).glob("*.ckpt")
            os.replace(written, final / written.name)
        if self.config.save_only_latest_checkpoint:
            for other in final.glob("*.ckpt"):
                if other.name != written.name:
                    other.unlink(missing_ok=True)  # another run in this folder may have been faster

    def train_iteration(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """A step; where it isn't finite or the GPU is too small for it, the state before it is saved and the program ends.

        Raises:
            SystemExit: with code 1, after one line on stderr.
        """
        try:
            return super().train_iteration(step)
        except NotFiniteError as error:
            with exit_on_error():
                raise self._stopped(step, error) from None
            raise
        except torch.cuda.OutOfMemoryError as error:
            with exit_on_error():
                raise self._too_large(step, error) from None
            raise

    def _too_large(self, step: int, error: torch.cuda.OutOfMemoryError) -> PmniError:
        rays = getattr(self.config.pipeline.datamanager, "train_num_rays_per_batch")
        return PmniError(
            f"{self.base_dir}: step {step} ended training: the GPU's memory ran out ({reason(error)[:120]}); "
            f"{self._state_saved(step)}lower --pipeline.datamanager.train-num-rays-per-batch ({rays} now), "
            "--pipeline.model.samples-per-ray, or the field's levels (--pipeline.model.sdf-field.grid-vertices, "
            ".hash-levels, .hash-log2-table)"
        )

    def _state_saved(self, step: int) -> str:
        """Writes the state before a step, and says where it is; nothing at the first step."""
        if step == 0:
            return ""
        self.save_checkpoint(step - 1)
        return f"the state before it is in {self.checkpoint_dir}, "

    def _stopped(self, step: int, error: NotFiniteError) -> PmniError:
        state: Dict[str, Any] = getattr(self.pipeline, "last_step", {})
        with atomic_path(self.base_dir / BATCH_FILE) as path:
            torch.save({"step": step, **state}, path)
        where = self._state_saved(step)
        return PmniError(
            f"{self.base_dir}: step {step} ended training: {error} is not finite; {where}"
            f"its batch in {self.base_dir / BATCH_FILE}: lower the learning rates, or report both"
        )

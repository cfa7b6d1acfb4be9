# SPDX-License-Identifier: Apache-2.0
"""Actions of the live page's buttons, which write files: they wait for the lock, within a bound, and end with the page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Optional

import torch
from nerfstudio.utils.rich_utils import CONSOLE

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.marching_cubes import extract_mesh
from pmni_nerfstudio.training.lock import TrainingLock

if TYPE_CHECKING:
    from pathlib import Path

    from pmni_nerfstudio.data.scene import Scene
    from pmni_nerfstudio.model.pmni_model import PmniModel
    from pmni_nerfstudio.training.trainer import PmniTrainer

EXPORT_CELLS = 512
"""Number of marching cubes cells along the diameter, for exported meshes."""
WAIT_SECONDS = 120.0
"""Longest time in seconds that a button waits for a training step or another button, and the page for buttons at its end."""


class PageActions:
    """Actions of the buttons. They run one after another, and none runs once the page has closed.

    Args:
        model: Model that is trained or shown.
        scene: Scene whose world meshes are exported in.
        folder: Folder of the run.
        lock: Lock of training and page.
        trainer: Trainer of the run; None if nothing is trained.
        step: Returns the current step.
    """

    def __init__(
        self,
        model: PmniModel,
        scene: Scene,
        folder: Path,
        lock: Any,
        trainer: Optional[PmniTrainer],
        step: Callable[[], int],
    ) -> None:
        self._model, self._scene, self._folder, self._trainer, self._step = model, scene, folder, trainer, step
        self._lock = lock
        self._changed = threading.Condition()
        self._running = 0
        self._closed = False

    @property
    def can_save(self) -> bool:
        """Whether there is a training run to save checkpoints of."""
        return self._trainer is not None

    def close(self, seconds: float = WAIT_SECONDS) -> None:
        """Admit no further action, and wait for those that run, at most for some seconds."""
        with self._changed:
            self._closed = True
            if self._running:
                CONSOLE.print(f"Waiting for the page's buttons to finish, at most {seconds:.0f} s.", soft_wrap=True)
            if not self._changed.wait_for(lambda: self._running == 0, seconds):
                CONSOLE.print("A button of the page did not finish; its file is not written.", soft_wrap=True)

    def export(self) -> str:
        """Write the mesh to the run's folder; a message about it."""
        from pmni_nerfstudio.data.result_files import write_mesh
        from pmni_nerfstudio.geometry.mesh import transformed_mesh

        try:
            with self._admitted(), self._evaluation_mode():
                step = self._step()
                mesh = extract_mesh(self._model.field.sdf, EXPORT_CELLS, device=self._model.device, progress=False)
                path = self._folder / f"mesh-{step:06d}.ply"
                write_mesh(path, transformed_mesh(mesh, self._scene.world_from_unit))
        except PmniError as error:
            return f"Not exported: {error}"
        CONSOLE.log(f"Wrote {path}")
        units = "object units" if self._scene.c2w is None else "the data's units"
        return f"Wrote {path.name} to the run's folder: {len(mesh.faces):,} faces, in {units}"

    def save(self) -> str:
        """Save a checkpoint of the run; a message about it."""
        trainer = self._trainer
        assert trainer is not None
        try:
            with self._admitted(), self._locked():
                steps = 0 if trainer.controller is None else trainer.controller.steps_done
                if steps == 0:
                    return "Not saved: no training step is complete yet"
                trainer.save_checkpoint(steps - 1)
        except PmniError as error:
            return f"Not saved: {error}"
        except OSError as error:
            return f"Not saved: {error.strerror or error}"
        CONSOLE.log(f"Saved the checkpoint of step {steps - 1} in {trainer.checkpoint_dir}")
        return f"Saved the checkpoint of step {steps - 1}"

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """Count a running action.

        Raises:
            PmniError: The page has closed.
        """
        with self._changed:
            if self._closed:
                raise PmniError("training has ended, and the page is closing")
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of training and page.

        Raises:
            PmniError: It was not free within WAIT_SECONDS.
        """
        if isinstance(self._lock, TrainingLock):
            with self._lock.requested(WAIT_SECONDS):
                yield
            return
        if not self._lock.acquire(timeout=WAIT_SECONDS):  # ns-viewer's
            raise PmniError(f"the page was busy for {WAIT_SECONDS:g} s; try again")
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        """Hold the lock, with the model in evaluation mode."""
        with self._locked(), torch.no_grad():
            was_training = self._model.training
            self._model.eval()
            try:
                yield
            finally:
                self._model.train(was_training)

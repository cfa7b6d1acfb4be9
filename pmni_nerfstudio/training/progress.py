# SPDX-License-Identifier: Apache-2.0
"""Console messages of a run: lines of progress where there is no terminal, and a summary at the end."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Callable, List, Optional, Sequence

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.utils.writer import GLOBAL_BUFFER

from pmni_nerfstudio.registration.console import ProgressLines
from pmni_nerfstudio.training.controller import RunController


class RunMessages:
    """Messages of one run.

    Args:
        controller: Controller of the run.
        folder: Folder of the run.
        on_end: Receives the lines of the summary too.
    """

    def __init__(
        self, controller: RunController, folder: Path, on_end: Optional[Callable[[Sequence[str]], None]] = None
    ) -> None:
        self._controller, self._folder, self._on_end = controller, folder, on_end
        self._lines = None if CONSOLE.is_terminal else ProgressLines(CONSOLE, "Training")

    def callbacks(self) -> List[TrainingCallback]:
        """Callbacks for the trainer, to be called after those of the controller."""
        return [
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self.report_step),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], self.summarize),
        ]

    def report_step(self, step: int) -> None:
        """Print a line at the first step and each tenth of the schedule, where there is no terminal.

        nerfstudio's table counts to the same end: the schedule's, where most runs converge, and beyond it the maximum.
        """
        run = self._controller
        GLOBAL_BUFFER["max_iter"] = run.schedule_steps if step + 1 < run.schedule_steps else run.max_steps
        if self._lines is not None:
            done = min((step + 1) / max(run.schedule_steps, 1), 1.0)
            more = "" if step + 1 < run.schedule_steps else f", at most {run.max_steps}"
            self._lines.report("training", done, f"step {step + 1} of {run.schedule_steps}{more}")

    def summarize(self, step: int) -> None:
        """Print what was made, where it is, whether it can be trusted, and the next command."""
        run = self._controller
        views, used = run.model.views.num_views, len(run.model.inlier_indices())
        left_out = "" if used == views else f" ({views - used} left out)"
        config = os.path.relpath(self._folder / "config.yml")
        result = os.path.relpath(self._folder / "result")
        blocks = run.model.field.blocks
        how = f"after {run.steps_done} steps" if blocks is None else f"in {blocks.count} blocks"
        lines = [
            f"Made: a surface and the cameras of {used} views{left_out}, {how}",
            f"In: {self._folder}",
            f"Verdict: {'; '.join(self._verdict())}",
            f"Next: {shlex.join(['pmni', 'export', '--load-config', config, '--output-dir', result])}",
        ]
        for line in lines:
            print_line(line)
        if self._on_end is not None:
            self._on_end(lines)

    def _verdict(self) -> List[str]:
        """Verdict of the registration, if there was one, and whether the training has converged."""
        run = self._controller
        found: List[str] = []
        statistics = run.model.registration_statistics
        if statistics is not None:
            reasons = f" ({'; '.join(statistics['reasons'])})" if statistics["reasons"] else ""
            found.append(f"registration {statistics['verdict']}{reasons}")
        if run.converged is None:
            found.append("training complete")
        else:
            found.append("training converged" if run.converged else "training not converged after the maximum of steps")
        return found


def print_line(text: str) -> None:
    """Print one line, however long, without markup and highlighting."""
    CONSOLE.print(text, highlight=False, soft_wrap=True, markup=False)

# SPDX-License-Identifier: Apache-2.0
"""Registration on the console: progress bar, summary and warnings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pmni_nerfstudio.registration.close_up_registration import register_all
from pmni_nerfstudio.registration.monitoring import Watcher
from pmni_nerfstudio.registration.pipeline import Registration, RegistrationSettings
from pmni_nerfstudio.registration.views import Views


def register_with_progress(
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"] | None,
    settings: RegistrationSettings,
    console: Console,
    watcher: Watcher | None = None,
    partial: Path | None = None,
) -> Registration:
    """Run `register_all` with a progress bar, then print its summary; in a file or a pipe, with lines instead of a bar."""
    if partial is not None and partial.is_file():
        console.print(f"Registration: goes on from {partial}", highlight=False, soft_wrap=True)
    if not console.is_terminal:
        registration = register_all(views, c2w, settings, ProgressLines(console, "Registration"), watcher, partial)
        print_summary(registration, views, console)
        return registration
    columns = (TextColumn("Registration: {task.description}"), BarColumn(), TextColumn("{task.fields[residual]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("depth maps", total=1.0, residual="")

        def show(stage: str, done: float, residual: float) -> None:
            bar.update(task, description=stage, completed=done, residual=_residual_text(residual))

        registration = register_all(views, c2w, settings, show, watcher, partial)
    print_summary(registration, views, console)
    return registration


def print_summary(registration: Registration, views: Views, console: Console) -> None:
    """Print verdict, residual and mask IoU in one line, then the reasons."""
    agreement = registration.agreement
    console.print(
        f"Registration: {int(registration.trusted.sum())} of {len(views)} views in "
        f"{sum(registration.seconds.values()):.1f} s; median normal residual {np.median(agreement.median_deg):.2f} deg, "
        f"mean mask IoU {agreement.iou.mean():.1%}; verdict: {registration.verdict.name}",
        highlight=False,
        soft_wrap=True,
    )
    labels = {"ok": "Note", "doubtful": "[bold yellow]Warning", "failed": "[bold red]Failed"}
    label = labels[registration.verdict.name]
    for reason in registration.verdict.reasons:
        console.print(f"{label}: {escape(reason)}", highlight=False, soft_wrap=True)


class ProgressLines:
    """A line at each stage and each tenth of the work, where there is no terminal for a progress bar.

    Args:
        console: Where to write.
        label: Beginning of each line.
    """

    def __init__(self, console: Console, label: str) -> None:
        self._console, self._label = console, label
        self._stage, self._tenths = "", -1

    def __call__(self, stage: str, done: float, residual: float) -> None:
        """Report progress; see `OnProgress`."""
        text = _residual_text(residual)
        self.report(stage, done, f"{stage}, {text}" if text else stage)

    def report(self, stage: str, done: float, text: str) -> None:
        """Print a line if the stage is new or another tenth is done.

        Args:
            stage: Name of the stage.
            done: Fraction done, 0 to 1.
            text: What to print.
        """
        tenths = int(10 * done + 1e-9)
        if stage == self._stage and tenths <= self._tenths:
            return
        self._stage, self._tenths = stage, max(tenths, self._tenths)
        line = f"{self._label}: {100 * done:.0f}%, {text}"
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


def _residual_text(residual: float) -> str:
    """A residual for a progress bar or line; empty for NaN, which stages without a residual report."""
    return "" if np.isnan(residual) else f"residual {residual:.3g}"

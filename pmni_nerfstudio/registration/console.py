# SPDX-License-Identifier: Apache-2.0
"""Registration on the console: progress bar, summary and warnings."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pmni_nerfstudio.registration.monitoring import Watcher
from pmni_nerfstudio.registration.pipeline import Registration, RegistrationSettings, register
from pmni_nerfstudio.registration.views import Views


def register_with_progress(
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"] | None,
    settings: RegistrationSettings,
    console: Console,
    watcher: Watcher | None = None,
) -> Registration:
    """Run `register` with a progress bar, then print its summary."""
    columns = (TextColumn("Registration: {task.description}"), BarColumn(), TextColumn("{task.fields[residual]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("depth maps", total=1.0, residual="")

        def show(stage: str, done: float, residual: float) -> None:
            bar.update(task, description=stage, completed=done, residual=f"residual {residual:.3g}")

        registration = register(views, c2w, settings, show, watcher)
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

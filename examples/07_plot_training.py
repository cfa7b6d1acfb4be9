# SPDX-License-Identifier: Apache-2.0
"""Plot the losses, metrics and learning rates of a training run.

    python examples/07_plot_training.py RUN_FOLDER picture.png

Needs the folder of the run's config.yml (RUN_FOLDER), trained with --vis tensorboard or viewer+tensorboard. All loss terms
share one logarithmic plot; each metric has a plot of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.errors import PmniError, exit_on_error

LOSSES, METRICS, RATES = "Train Loss Dict/", "Train Metrics Dict/", "learning_rate/"
"""Prefixes of nerfstudio's tags that are plotted; others are times and memory."""
TOTAL = "Train Loss"


def read_curves(folder: Path) -> dict[str, np.ndarray]:
    """Steps and values (n, 2) of all logged scalars, by nerfstudio's tag."""
    if not any(folder.glob("events.out.tfevents.*")):
        raise PmniError(f"{folder}: has no TensorBoard events; give the folder of a run trained with --vis tensorboard")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0 reads all values
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: np.array([(event.step, event.value) for event in events.Scalars(tag)]) for tag in tags}


def draw(curves: dict[str, np.ndarray]) -> Figure:
    """Draw a plot of the losses, below it one plot per metric, and one of the learning rates."""
    losses = [tag for tag in curves if tag == TOTAL or tag.startswith(LOSSES)]
    panels = [[tag] for tag in curves if tag.startswith(METRICS)] + [[tag for tag in curves if tag.startswith(RATES)]]
    panels = [panel for panel in panels if panel]
    figure = Figure(figsize=(9, 4 + 2 * len(panels)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    heights = [2.0, *[1.0] * len(panels)]
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, panel in zip(axes, [losses, *panels]):
        for tag in panel:
            steps, values = curves[tag].T
            axis.plot(
                steps,
                values,
                label="total" if tag == TOTAL else tag.split("/")[-1].removesuffix("_loss"),
                lw=2 if tag == TOTAL else 1.2,
            )
        axis.grid(color="0.9")
        axis.legend(fontsize=8, loc="upper right")
        axis.set_ylabel(panel[0].split("/")[0].removesuffix(" Dict").replace("_", " ") if panel else "")
    if any((curves[tag][:, 1] > 0).any() for tag in losses):
        axes[0].set_yscale("log")
    axes[0].set_ylabel("weighted loss terms")
    axes[-1].set_xlabel("step")
    return figure


def main(run: tyro.conf.Positional[Path], picture: tyro.conf.Positional[Path], /) -> None:
    """Draw the curves.

    Args:
        run: folder of the run.
        picture: PNG file to write.
    """
    figure = draw(read_curves(run))
    picture.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary)
    print(f"wrote {picture}")


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main)

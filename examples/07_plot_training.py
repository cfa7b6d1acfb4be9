# SPDX-License-Identifier: Apache-2.0
"""Curves of a training run: every loss term on one logarithmic scale, and each metric and learning rate by itself.

    python examples/07_plot_training.py RUN_FOLDER picture.png

RUN_FOLDER is the folder of the run's config.yml; it was trained with --vis tensorboard (or viewer+tensorboard).
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
"""How nerfstudio's names begin. What else it logs (seconds, memory) is no curve of the training."""
TOTAL = "Train Loss"


def read_curves(folder: Path) -> dict[str, np.ndarray]:
    """Each logged number's steps and values, (n, 2), by nerfstudio's name for it."""
    if not any(folder.glob("events.out.tfevents.*")):
        raise PmniError(
            f"{folder}: holds no events of TensorBoard: train with --vis tensorboard, give the run's folder"
        )
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0: all of them
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: np.array([(event.step, event.value) for event in events.Scalars(tag)]) for tag in tags}


def draw(curves: dict[str, np.ndarray]) -> Figure:
    """Losses on top, a panel for each metric and one for the learning rates below."""
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
    axes[0].set_ylabel("loss, each term with its weight")
    axes[-1].set_xlabel("step")
    return figure


def main(run: tyro.conf.Positional[Path], picture: tyro.conf.Positional[Path], /) -> None:
    """Draw the curves.

    Args:
        run: folder of the run.
        picture: PNG to write.
    """
    figure = draw(read_curves(run))
    picture.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary)
    print(f"wrote {picture}")


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main)

# SPDX-License-Identifier: Apache-2.0
"""Training curves from the TensorBoard files of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pmni_nerfstudio.report.charts import COLORS, Line, chart

LOSSES = "Train Loss Dict/"

_MAX_POINTS = 600
_METRICS = ("Eval Images Metrics/", "Train Metrics Dict/")
_IDLE = "num_rays"
_UNITS = (("_deg", "deg"), ("_pct", "%"), ("pose_translation", "radii"))


@dataclass(frozen=True, eq=False)
class Curve:
    """A scalar over training steps, subsampled for display."""

    steps: np.ndarray
    values: np.ndarray


def read_curves(folder: Path) -> dict[str, Curve]:
    """Read all scalars, by name, from the event files below a run's folder; the last event of a step counts."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    points: dict[str, dict[int, float]] = {}
    for place in sorted({path.parent for path in folder.rglob("*tfevents*")}):
        events = EventAccumulator(str(place), size_guidance={SCALARS: 0})
        events.Reload()
        for tag in events.Tags()[SCALARS]:
            points.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return {tag: _curve(values) for tag, values in points.items()}


def loss_chart(curves: dict[str, Curve]) -> dict[str, Any] | None:
    """Chart of every loss term over the steps on a logarithmic scale; None if there is none."""
    terms = {tag.removeprefix(LOSSES): curve for tag, curve in curves.items() if tag.startswith(LOSSES)}
    if not terms:
        return None
    lines = [
        Line(name.removesuffix("_loss"), curve.steps, curve.values, COLORS[i % len(COLORS)])
        for i, (name, curve) in enumerate(terms.items())
    ]
    if "Train Loss" in curves:
        lines.append(Line("sum", curves["Train Loss"].steps, curves["Train Loss"].values, None, dashed=True))
    alt = f"Weighted losses over the training steps: {', '.join(line.name for line in lines)}"
    return chart(lines, alt=alt, x_label="step", y_label="weighted loss", height=360, logarithmic=True)


def metric_charts(curves: dict[str, Curve], units: str) -> dict[str, dict[str, Any]]:
    """Charts of pose errors and the other metrics over the steps, by readable name."""
    found = {}
    for prefix in _METRICS:
        for tag, curve in curves.items():
            # metrics that are always zero belong to pose optimizers that the run doesn't use
            if not tag.startswith(prefix) or tag.endswith(_IDLE) or not curve.values.any():
                continue
            name = metric_name(tag, units)
            color = COLORS[0] if prefix == _METRICS[0] else COLORS[2]
            line = Line(name, curve.steps, curve.values, color, points=len(curve.steps) < 25)
            found[name] = chart([line], alt=f"{name} over the training steps", x_label="step")
    return found


def metric_name(tag: str, units: str) -> str:
    """Readable name of a scalar, with its unit if the name implies one.

    Args:
        tag: Name in the event file, such as "Eval Images Metrics/rot_deg".
        units: Name of the data's units.
    """
    group, name = tag.split("/", 1)
    unit = next((unit for part, unit in ((*_UNITS, ("chamfer", units), ("position", units))) if part in name), None)
    name = name.replace("_deg", "").replace("_pct", "")
    suffix = ", training" if group == "Train Metrics Dict" else ""
    return f"{name.replace('_', ' ').strip()}{f' ({unit})' if unit else ''}{suffix}"


def _curve(points: dict[int, float]) -> Curve:
    steps = np.array(sorted(points))
    kept = steps[np.unique(np.linspace(0, len(steps) - 1, _MAX_POINTS).round().astype(int))]
    return Curve(kept, np.array([points[step] for step in kept]))

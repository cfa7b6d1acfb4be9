# SPDX-License-Identifier: Apache-2.0
"""Training curves from the TensorBoard files of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from pmni_nerfstudio.report.figures import COLORS, layout

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


def loss_figure(curves: dict[str, Curve]) -> go.Figure | None:
    """Plot every loss term over the steps on a logarithmic scale; None if there is none."""
    terms = {tag.removeprefix(LOSSES): curve for tag, curve in curves.items() if tag.startswith(LOSSES)}
    if not terms:
        return None
    if "Train Loss" in curves:
        terms["sum"] = curves["Train Loss"]
    # Below the plot, the legend takes nothing of a narrow page's width and hides no curve.
    legend = {"orientation": "h", "yanchor": "top", "y": -0.18, "x": 0}
    figure = go.Figure(layout=layout(height=420, hovermode="x unified", showlegend=True, legend=legend))
    for i, (name, curve) in enumerate(terms.items()):
        color = "#333" if name == "sum" else COLORS[i % len(COLORS)]
        style = {"color": color, "width": 1.2 if name == "sum" else 1.8, "dash": "dot" if name == "sum" else "solid"}
        # a logarithmic axis has no zero
        values = np.where(curve.values > 0, curve.values, np.nan)
        figure.add_scatter(x=curve.steps, y=values, name=name.removesuffix("_loss"), line=style, mode="lines")
    figure.update_yaxes(type="log", dtick=1, title="weighted loss", exponentformat="power")
    figure.update_xaxes(title="step")
    return figure


def metric_figures(curves: dict[str, Curve], units: str) -> dict[str, go.Figure]:
    """Plot pose errors and the other metrics over the steps, by readable name."""
    found = {}
    for prefix in _METRICS:
        for tag, curve in curves.items():
            # metrics that are always zero belong to pose optimizers that the run doesn't use
            if not tag.startswith(prefix) or tag.endswith(_IDLE) or not curve.values.any():
                continue
            name = metric_name(tag, units)
            figure = go.Figure(layout=layout(height=180, margin={"l": 48, "r": 12, "t": 8, "b": 36}))
            figure.add_scatter(
                x=curve.steps,
                y=curve.values,
                name=name,
                mode="lines+markers" if len(curve.steps) < 25 else "lines",
                line={"color": COLORS[0] if prefix == _METRICS[0] else COLORS[2], "width": 1.8},
            )
            figure.update_xaxes(nticks=5, title="step")
            figure.update_yaxes(nticks=5, rangemode="tozero")
            found[name] = figure
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

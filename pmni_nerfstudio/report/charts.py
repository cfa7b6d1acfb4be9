# SPDX-License-Identifier: Apache-2.0
"""Contents of the page's charts: curves over one axis, drawn by templates/charts.js with uPlot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#4a5568", "#b7791f", "#319795")
"""Color cycle of curves, readable on light and dark pages."""


@dataclass(frozen=True, eq=False)
class Line:
    """A curve of a chart."""

    name: str
    x: np.ndarray
    y: np.ndarray
    """Values; NaN leaves a gap."""
    color: str | None = COLORS[0]
    """CSS color; None is the page's text color."""
    dashed: bool = False
    points: bool = False
    """Whether to mark the values."""


def chart(
    lines: Sequence[Line], *, alt: str, x_label: str, y_label: str = "", height: int = 180, logarithmic: bool = False
) -> dict[str, Any]:
    """Contents of a chart, for JSON.

    Args:
        lines: curves.
        alt: description for readers who cannot see the chart.
        x_label: label of the horizontal axis.
        y_label: label of the vertical axis.
        height: height of the plot in pixels, without legend.
        logarithmic: whether the vertical axis is logarithmic; values that are not positive are left out.
    """
    series = []
    for line in lines:
        shown = np.isfinite(line.y) & ((line.y > 0) | (not logarithmic))
        # Six digits are more than a screen shows.
        values = [float(f"{value:.6g}") if show else None for value, show in zip(line.y, shown)]
        style = {"color": line.color, "dashed": line.dashed, "points": line.points}
        series.append({"name": line.name, "x": [float(x) for x in line.x], "y": values, **style})
    labels = {"alt": alt, "xLabel": x_label, "yLabel": y_label}
    return {"lines": series, "height": height, "logarithmic": logarithmic, **labels}


def bias_chart(curve_deg: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Chart of a reflectance bias: pairs of the angle between normal and viewing direction and the tilt, in degrees."""
    angles, tilts = np.array(curve_deg, dtype=float).T
    return chart(
        [Line("tilt", angles, tilts)],
        alt="Tilt of the normals away from the viewer over the angle between normal and viewing direction",
        x_label="angle between normal and viewing direction (deg)",
        y_label="tilt away from the viewer (deg)",
        height=240,
    )

# SPDX-License-Identifier: Apache-2.0
"""Weights of the losses by stage of the run."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, fields
from typing import Dict, Tuple

from pmni_nerfstudio.errors import PmniError


class ScheduleError(PmniError, ValueError):
    """Invalid loss weights. Also a ValueError, so that `ns-train` reports it as an error of its options."""


@dataclass
class LossWeights:
    """Weight of each loss: one number for the whole run, or one number per stage. A loss of weight 0 is not computed.

    Raises:
        ScheduleError: Stage ends do not increase to 1, a weight is negative or not finite, or a loss has neither one
            weight nor one weight per stage.
    """

    stage_ends: Tuple[float, ...] = (1.0,)
    """End of each stage as a fraction of the run: increasing, the last one 1."""
    normal: Tuple[float, ...] = (1.0,)
    """Weight per stage of the difference between rendered and observed normals."""
    mask: Tuple[float, ...] = (0.5,)
    """Weight per stage of the cross-entropy between the surface's silhouette and the masks."""
    eikonal: Tuple[float, ...] = (0.1,)
    """Weight per stage of the deviation of the SDF's gradient norm from 1."""
    depth: Tuple[float, ...] = (0.0,)
    """Weight per stage of the scale-invariant difference between rendered and integrated depth; needs depth maps."""
    sdf_on_points: Tuple[float, ...] = (0.0,)
    """Weight per stage of the absolute SDF at the points of the integrated depth maps; needs depth maps."""
    point_consistency: Tuple[float, ...] = (0.0,)
    """Weight per stage of the difference between the depth maps of neighboring views; needs depth maps."""
    cross_view_normal: Tuple[float, ...] = (0.0,)
    """Weight per stage of the disagreement between the normals that views observe at the same surface point."""

    def __post_init__(self) -> None:
        ends = self.stage_ends
        if not ends or not all(a < b for a, b in zip((0.0, *ends), ends)) or ends[-1] != 1.0:
            raise ScheduleError(
                f"loss-weights.stage-ends: {ends} must be increasing fractions of the run, above 0 and ending at 1"
            )
        for name, weights in self._by_name().items():
            if len(weights) not in (1, len(ends)):
                raise ScheduleError(
                    f"loss-weights.{name.replace('_', '-')}: {len(weights)} weights for {len(ends)} stages;"
                    f" give one weight, or one per stage"
                )
            if not all(0 <= weight < float("inf") for weight in weights):
                raise ScheduleError(f"loss-weights.{name.replace('_', '-')}: {weights} must be finite and not negative")

    def weights_at(self, fraction: float) -> Dict[str, float]:
        """Weight of every loss, zeros included.

        Args:
            fraction: Completed fraction of the run; the last stage also covers 1 and beyond.
        """
        stage = min(bisect_right(self.stage_ends, fraction), len(self.stage_ends) - 1)
        return {name: float(weights[min(stage, len(weights) - 1)]) for name, weights in self._by_name().items()}

    def _by_name(self) -> Dict[str, Tuple[float, ...]]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "stage_ends"}

# SPDX-License-Identifier: Apache-2.0
"""How much each loss counts, and when: weights by stage, stages as fractions of the run."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, fields
from typing import Dict, Tuple

from pmni_nerfstudio.errors import PmniError


class ScheduleError(PmniError, ValueError):
    """Loss weights that make no schedule. A ValueError too, so that `ns-train` shows it as an error of its options."""


@dataclass
class LossWeights:
    """Weight of each loss: one number for the whole run, or one for each stage. Zero: the loss is not computed.

    Raises:
        ScheduleError: stages don't rise to 1, a weight is negative, or a loss has neither one weight nor one a stage.
    """

    stage_ends: Tuple[float, ...] = (1.0,)
    """Where each stage ends, as fractions of the run: rising, the last one 1."""
    normal: Tuple[float, ...] = (1.0,)
    """Weight by stage of rendered against observed normals."""
    mask: Tuple[float, ...] = (0.5,)
    """Weight by stage of the accumulation against the mask."""
    eikonal: Tuple[float, ...] = (0.1,)
    """Weight by stage of the SDF's slope against 1."""
    depth: Tuple[float, ...] = (0.0,)
    """Weight by stage of rendered against integrated depth, scale-invariant; needs depth maps."""
    sdf_on_points: Tuple[float, ...] = (0.0,)
    """Weight by stage of the SDF on the points of the depth maps against 0; needs depth maps."""
    point_consistency: Tuple[float, ...] = (0.0,)
    """Weight by stage of the depth maps' points against neighbouring views' depth maps; needs depth maps."""
    cross_view_normal: Tuple[float, ...] = (0.0,)
    """Weight by stage of the observed normals of one surface point in different views against each other."""
    curvature: Tuple[float, ...] = (0.0,)
    """Weight by stage of the SDF's Laplacian, which smooths."""

    def __post_init__(self) -> None:
        ends = self.stage_ends
        if not ends or not all(a < b for a, b in zip((0.0, *ends), ends)) or ends[-1] != 1.0:
            raise ScheduleError(
                f"loss-weights.stage-ends: {ends} must be fractions of the run that rise from above 0 to 1"
            )
        for name, weights in self._by_name().items():
            if len(weights) not in (1, len(ends)):
                raise ScheduleError(
                    f"loss-weights.{name.replace('_', '-')}: {len(weights)} weights for {len(ends)} stages;"
                    f" give one, or one for each stage"
                )
            if not all(0 <= weight < float("inf") for weight in weights):
                raise ScheduleError(f"loss-weights.{name.replace('_', '-')}: {weights} must be finite and not negative")

    def weights_at(self, fraction: float) -> Dict[str, float]:
        """Weight of every loss, zeros included.

        Args:
            fraction: of the run that is done; at 1 and beyond, the last stage holds.
        """
        stage = min(bisect_right(self.stage_ends, fraction), len(self.stage_ends) - 1)
        return {name: float(weights[min(stage, len(weights) - 1)]) for name, weights in self._by_name().items()}

    def _by_name(self) -> Dict[str, Tuple[float, ...]]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "stage_ends"}

# SPDX-License-Identifier: Apache-2.0
"""Signed distance of a trained run, in the data world and its units, at arbitrary points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float

from pmni_nerfstudio.chunks import Chunks
from pmni_nerfstudio.data.dataset import PmniDataset
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.fields.sdf_field import PmniField
from pmni_nerfstudio.geometry.transforms import scale_of
from pmni_nerfstudio.training.trained_run import Run

_CHUNK = 1 << 18


@dataclass(frozen=True)
class WorldSdf:
    """Signed distance to the surface, negative inside.

    The values are distances within about a tenth of the scene's radius from the surface. Farther away, where the field
    is not trained, only their sign is meaningful.
    """

    field: PmniField
    """Trained field, defined in the unit-sphere world."""
    world_from_unit: Float[np.ndarray, "4 4"]
    """Similarity from the unit-sphere world to the data world."""

    @property
    def center(self) -> Float[np.ndarray, "3"]:
        """Center of the scene's sphere in the data world."""
        return self.world_from_unit[:3, 3]

    @property
    def radius(self) -> float:
        """Radius of the scene's sphere in the data's units."""
        return scale_of(self.world_from_unit)

    @torch.no_grad()
    def __call__(self, points: Float[np.ndarray, "p 3"]) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p 3"]]:
        """Evaluate the signed distance and its gradient.

        Args:
            points: points in the data world.

        Returns:
            Signed distances in the data's units, and gradients, which are dimensionless and of length about 1. Both are
            NaN outside the cube that circumscribes the scene's sphere.
        """
        rotation = self.world_from_unit[:3, :3] / self.radius
        unit = (np.asarray(points, dtype=np.float64) - self.center) @ rotation / self.radius
        values, gradients = np.full(len(unit), np.nan), np.full((len(unit), 3), np.nan)
        inside = np.flatnonzero((np.abs(unit) <= 1).all(axis=1))
        device = next(self.field.parameters()).device
        chunks = Chunks(_CHUNK, "points")

        def evaluate(start: int, size: int) -> int:
            part = inside[start : start + size]
            value, gradient = self.field.sdf_and_gradient(torch.from_numpy(unit[part]).float().to(device))
            values[part] = self.radius * value.double().cpu().numpy()
            # Distances and coordinates scale alike, so that a gradient only rotates.
            gradients[part] = gradient.double().cpu().numpy() @ rotation.T
            return start + len(part)

        start = 0
        while start < len(inside):
            start = chunks.run(partial(evaluate, start))
        return values, gradients


def world_sdf(run: Run) -> WorldSdf:
    """Signed distance of a run loaded by `load_run`.

    Raises:
        PmniError: the run was trained by a method of another package.
    """
    field, dataset = getattr(run.pipeline.model, "field", None), run.pipeline.datamanager.train_dataset
    if not (isinstance(field, PmniField) and isinstance(dataset, PmniDataset)):
        raise PmniError(
            f"{run.checkpoint}: {run.config.method_name} has no signed distance to query; give a run of a pmni method"
        )
    return WorldSdf(field, dataset.scene.world_from_unit)

# SPDX-License-Identifier: Apache-2.0
"""The signed distance of a trained run in the data's own world and units, for programs that ask at points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float

from pmni_nerfstudio.chunks import Chunks
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.fields.sdf_field import PmniField
from pmni_nerfstudio.geometry.transforms import scale_of
from pmni_nerfstudio.training.trained_run import Run

_CHUNK = 1 << 18


@dataclass(frozen=True)
class WorldSdf:
    """A signed distance, negative inside. Within a tenth of the radius of the surface or so it is a distance; further
    off, where training never looks, its sign is right and its size is not."""

    field: PmniField
    world_from_unit: Float[np.ndarray, "4 4"]
    """Similarity from the unit sphere, where the field lives, to the data's world."""

    @property
    def centre(self) -> Float[np.ndarray, "3"]:
        """Of the scene's sphere, in the data's world."""
        return self.world_from_unit[:3, 3]

    @property
    def radius(self) -> float:
        """Of the scene's sphere, in the data's units: the similarity's scale."""
        return scale_of(self.world_from_unit)

    @torch.no_grad()
    def __call__(self, points: Float[np.ndarray, "p 3"]) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p 3"]]:
        """Signed distances in the data's units and their gradients at points in the data's world.

        The gradient has no unit and a length of about 1. Outside the cube about the scene's sphere nothing is known:
        NaN.
        """
        rotation = self.world_from_unit[:3, :3] / self.radius
        unit = (np.asarray(points, dtype=np.float64) - self.centre) @ rotation / self.radius
        values, gradients = np.full(len(unit), np.nan), np.full((len(unit), 3), np.nan)
        inside = np.flatnonzero((np.abs(unit) <= 1).all(axis=1))
        device = next(self.field.parameters()).device
        chunks = Chunks(_CHUNK, "points")

        def some(start: int, size: int) -> int:
            part = inside[start : start + size]
            value, gradient = self.field.sdf_and_gradient(torch.from_numpy(unit[part]).float().to(device))
            values[part] = self.radius * value.double().cpu().numpy()
            # The scale of the distance and that of the step cancel: a gradient only turns.
            gradients[part] = gradient.double().cpu().numpy() @ rotation.T
            return start + len(part)

        start = 0
        while start < len(inside):
            start = chunks.run(partial(some, start))
        return values, gradients


def world_sdf(run: Run) -> WorldSdf:
    """The signed distance of a run that `load_run` gave.

    Raises:
        PmniError: it is a run of another method.
    """
    from pmni_nerfstudio.data.dataset import PmniDataset

    field, dataset = getattr(run.pipeline.model, "field", None), run.pipeline.datamanager.train_dataset
    if not (isinstance(field, PmniField) and isinstance(dataset, PmniDataset)):
        raise PmniError(f"{run.checkpoint}: is a run of {run.config.method_name}, which has no signed distance of ours")
    return WorldSdf(field, dataset.scene.world_from_unit)

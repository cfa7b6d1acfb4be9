# SPDX-License-Identifier: Apache-2.0
"""How far each view's normals are from the surface's, gathered from the training's own batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict

import numpy as np
import torch
from jaxtyping import Float

from pmni_nerfstudio.model.losses import angles

if TYPE_CHECKING:
    from pmni_nerfstudio.model.pmni_model import PmniModel

MEMORY = 0.7
"""Of what was gathered, from one look at it to the next."""


class ViewResiduals:
    """Means over the last batches.

    Args:
        model: that trains.
        count: of its views.
    """

    def __init__(self, model: PmniModel, count: int) -> None:
        self._model = model
        self._sums = torch.zeros(2, count)
        self._known = np.full(count, np.nan)

    def set(self, residual_deg: Float[np.ndarray, "n"]) -> None:
        """What is known from elsewhere, of views that no batch has shown yet."""
        self._known = residual_deg

    @torch.no_grad()
    def note(self, outputs: Dict[str, Any], batch: Dict[str, torch.Tensor]) -> None:
        """Take in a batch; nothing, where its loss needed no normals."""
        if "normal_world" not in outputs:
            return
        view = batch["indices"][:, 0].to(outputs["normal_world"].device)
        counted = (batch["mask"][:, 0] > 0.5) & (outputs["accumulation"][:, 0] > 0.5)
        to_camera = self._model.camera_optimizer.w2c_opencv()[view[counted], :, :3]
        rendered = (to_camera * outputs["normal_world"][counted][:, None, :]).sum(dim=-1)
        observed = batch["normal"][counted].to(rendered)
        angle = angles(rendered, observed)
        sums = torch.zeros_like(self._sums, device=angle.device)
        sums[0].index_add_(0, view[counted], torch.rad2deg(angle).to(sums))
        sums[1].index_add_(0, view[counted], torch.ones_like(angle, dtype=sums.dtype))
        self._sums += sums.cpu()

    def look(self) -> Float[np.ndarray, "n"]:
        """Mean angles in degrees, NaN where nothing is known; what was gathered counts for less from now on."""
        sums, counts = self._sums.numpy().copy()
        self._sums *= MEMORY
        self._known = np.where(counts > 1e-6, sums / np.maximum(counts, 1e-6), self._known)
        return self._known

# SPDX-License-Identifier: Apache-2.0
"""Residuals of the views' normals against the surface, collected from training batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict

import numpy as np
import torch
from jaxtyping import Float

from pmni_nerfstudio.model.losses import angles

if TYPE_CHECKING:
    from pmni_nerfstudio.model.pmni_model import PmniModel

DECAY = 0.7
"""Factor by which earlier batches are down-weighted at each readout."""


class ViewResiduals:
    """Mean angle between observed and rendered normals of each view, over recent training batches.

    Args:
        model: model in training.
        num_views: number of training views.
    """

    def __init__(self, model: PmniModel, num_views: int) -> None:
        self._model = model
        self._sums = torch.zeros(2, num_views)
        self._latest_deg = np.full(num_views, np.nan)

    def set(self, residual_deg: Float[np.ndarray, "n"]) -> None:
        """Set the residuals, as those of registration, until batches show the views."""
        self._latest_deg = residual_deg

    @torch.no_grad()
    def add_batch(self, outputs: Dict[str, Any], batch: Dict[str, torch.Tensor]) -> None:
        """Add a training batch; one without rendered normals is ignored."""
        if "normal_world" not in outputs:
            return
        view = batch["indices"][:, 0].to(outputs["normal_world"].device)
        measured = (batch["mask"][:, 0] > 0.5) & batch["normal"].ne(0).any(dim=-1)
        valid = measured & (outputs["accumulation"][:, 0] > 0.5)
        to_camera = self._model.camera_optimizer.w2c_opencv()[view[valid], :, :3]
        rendered = (to_camera * outputs["normal_world"][valid][:, None, :]).sum(dim=-1)
        observed = batch["normal"][valid].to(rendered)
        angle = angles(rendered, observed)
        sums = torch.zeros_like(self._sums, device=angle.device)
        sums[0].index_add_(0, view[valid], torch.rad2deg(angle).to(sums))
        sums[1].index_add_(0, view[valid], torch.ones_like(angle, dtype=sums.dtype))
        self._sums += sums.cpu()

    def read(self) -> Float[np.ndarray, "n"]:
        """Mean angles in degrees, NaN for views without any; the batches so far are then down-weighted."""
        sums, counts = self._sums.numpy().copy()
        self._sums *= DECAY
        self._latest_deg = np.where(counts > 1e-6, sums / np.maximum(counts, 1e-6), self._latest_deg)
        return self._latest_deg

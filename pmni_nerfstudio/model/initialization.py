# SPDX-License-Identifier: Apache-2.0
"""Poses and surface that training starts from, however they were found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from pmni_nerfstudio.registration.close_up_detail import CloseUpDetail
from pmni_nerfstudio.registration.pipeline import Registration
from pmni_nerfstudio.registration.reflectance import EstimatedBias

InitializationKind = Literal["hull", "sweep", "surface"]
"""Kind of an initial surface, which determines how gently it is trained:

hull: a visual hull, coarse and still to be carved;
sweep: a plane sweep's surface, noisy but with concavities in place;
surface: a surface integrated from the normals, by registration or at given poses, with most of its detail.
"""


@dataclass
class Initialization:
    """Poses and surface for the model's warm start (`PmniModel.warm_start`)."""

    c2w: Float[np.ndarray, "n 4 4"]
    """Camera-to-world poses of the training views, OpenCV axes, unit-sphere world."""
    sdf: Float[Tensor, "r r r"]
    """Signed distance to the surface on a grid over [-1, 1]^3, corner vertices on the bounds, indexed x, y, z."""
    kind: InitializationKind = "hull"
    """Kind of the surface."""
    inlier_views: Bool[np.ndarray, " n"] | None = None
    """Views that are consistent with the others and are trained on; None for all."""
    registration: Registration | None = None
    """Registration that found them, if any."""
    reflectance: EstimatedBias | None = None
    """Reflectance bias of the normals, which training removes; None if not estimated."""
    detail: CloseUpDetail | None = None
    """Finer surface in the cube that close-up views see; None without close-ups."""

# SPDX-License-Identifier: Apache-2.0
"""What training starts from: poses and a first surface. The seam where registration plugs in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from pmni_nerfstudio.registration.hull import visual_hull


@dataclass
class Start:
    """Handed to the model before the first training step."""

    c2w: Float[np.ndarray, "n 4 4"]
    """Camera-to-world of the training views, OpenCV axes, unit-sphere world."""
    sdf: Float[Tensor, "r r r"]
    """Signed distance to the first surface on a grid over [-1, 1]^3, corners on the bounds, x slowest."""


def start_from_hull(
    masks: Bool[np.ndarray, "n h w"],
    K: Float[np.ndarray, "n 3 3"],
    c2w: Float[np.ndarray, "n 4 4"],
    resolution: int,
    votes: int,
) -> Start:
    """The given poses and their visual hull (see `visual_hull`).

    With few views fewer votes are asked, since every second opinion widens the hull; and where the masks agree on
    nothing at all (rough poses), more, until something is left.
    """
    most = len(masks)
    allowed = max(1, min(votes, most // 5))
    sdf = visual_hull(masks, K, c2w, resolution, allowed)
    while not bool((sdf < 0).any()) and allowed < most:
        allowed += 1
        sdf = visual_hull(masks, K, c2w, resolution, allowed)
    return Start(c2w=c2w, sdf=sdf)

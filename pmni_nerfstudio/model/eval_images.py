# SPDX-License-Identifier: Apache-2.0
"""A rendered view beside the observed one: numbers and pictures for nerfstudio's evaluation."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch
from jaxtyping import Bool, Float
from nerfstudio.utils import colormaps
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from pmni_nerfstudio.geometry.normals import normals_to_rgb
from pmni_nerfstudio.model.losses import angles

MOST_ERROR_DEG = 30.0
"""End of the colour scale of angular errors, whose beginning is 0."""


def error_colours(error_deg: Float[Tensor, "*b"]) -> Float[Tensor, "*b 3"]:
    """Colours of angular errors, on the scale that ends at MOST_ERROR_DEG."""
    return colormaps.apply_colormap((error_deg / MOST_ERROR_DEG).clamp(max=1.0)[..., None])


def error_picture(error_deg: Float[Tensor, "p"], seen: Bool[Tensor, "h w"]) -> Float[Tensor, "h w 3"]:
    """Angular errors of the pixels where something is seen, as colours; grey where they are NaN, black elsewhere."""
    known = error_deg.isfinite()
    colours = error_colours(error_deg.where(known, 0.0))
    picture = torch.zeros(*seen.shape, 3, device=error_deg.device)
    picture[seen] = torch.where(known[:, None], colours.to(picture), 0.4)
    return picture


def image_metrics(
    outputs: Dict[str, Any], observed: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w 1"]
) -> Tuple[Float[Tensor, "h w"], Dict[str, float]]:
    """Angular error of the rendered normals on pixels of mask and surface, in degrees; its mean, and the masks' overlap.

    Args:
        outputs: of the view: `normals_camera`, `accumulation`.
        observed: unit normals, camera space, OpenCV axes.
        mask: of the object.
    """
    rendered, seen = outputs["normals_camera"], outputs["accumulation"] > 0.5
    both = (mask & seen)[..., 0]
    if not bool(both.any()):
        CONSOLE.log("Evaluation: the surface is not seen in this view's mask.")
    error_deg = torch.where(both, torch.rad2deg(angles(rendered, observed)), 0.0)
    return error_deg, {
        "normal_mae_deg": float(error_deg[both].mean()) if bool(both.any()) else 180.0,
        "mask_iou": float((mask & seen).sum() / (mask | seen).sum()),
    }


def rendered_picture(outputs: Dict[str, Any]) -> Float[Tensor, "h w 3"]:
    """The same of a rendered view's normals, where its surface is."""
    return normals_to_rgb(outputs["normals_camera"], outputs["accumulation"] > 0.5)


def image_pictures(
    outputs: Dict[str, Any],
    observed: Float[Tensor, "h w 3"],
    mask: Bool[Tensor, "h w 1"],
    error_deg: Float[Tensor, "h w"],
) -> Dict[str, Tensor]:
    """Observed and rendered normals side by side, their error (0 to MOST_ERROR_DEG), accumulation, depth."""
    return {
        "normals": torch.cat([normals_to_rgb(observed, mask), rendered_picture(outputs)], dim=1),
        "angular_error": error_colours(error_deg),
        "accumulation": outputs["accumulation"].expand(-1, -1, 3),
        "depth": colormaps.apply_depth_colormap(outputs["depth"], outputs["accumulation"]),
    }

# SPDX-License-Identifier: Apache-2.0
"""Metrics and images that compare a rendered view with the observed one, for nerfstudio's evaluation."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from nerfstudio.utils import colormaps
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from pmni_nerfstudio.geometry.normals import normals_to_rgb
from pmni_nerfstudio.model.losses import angles

MAX_ERROR_DEG = 30.0
"""Upper end of the color scale of angular errors, in degrees; the lower end is 0."""
_BAR_WIDTH_PX, _BAR_HEIGHT_PX = 240, 14


def error_colors(error_deg: Float[Tensor, "*b"]) -> Float[Tensor, "*b 3"]:
    """Colors of angular errors, saturated at MAX_ERROR_DEG."""
    return colormaps.apply_colormap((error_deg / MAX_ERROR_DEG).clamp(max=1.0)[..., None])


def error_image(error_deg: Float[Tensor, "p"], surface: Bool[Tensor, "h w"]) -> Float[Tensor, "h w 3"]:
    """Color image of the angular errors of the pixels that show the surface: gray where NaN, black elsewhere."""
    known = error_deg.isfinite()
    colors = error_colors(error_deg.where(known, 0.0))
    image = torch.zeros(*surface.shape, 3, device=error_deg.device)
    image[surface] = torch.where(known[:, None], colors.to(image), 0.4)
    return image


def depth_image(depth: Float[Tensor, "h w"], surface: Bool[Tensor, "h w"]) -> Float[Tensor, "h w 3"]:
    """Color image of the depth of the pixels that show the surface, from the nearest to the farthest; black elsewhere."""
    image = torch.zeros(*surface.shape, 3, device=depth.device)
    if bool(surface.any()):
        found = depth[surface]
        scaled = (found - found.min()) / (found.max() - found.min()).clamp(min=1e-9)
        image[surface] = colormaps.apply_colormap(scaled[:, None]).to(image)
    return image


def color_bar() -> UInt8[np.ndarray, "h w 3"]:
    """Picture of the colors of `error_colors` and `depth_image`, from the lower end to the upper."""
    colors = colormaps.apply_colormap(torch.linspace(0, 1, _BAR_WIDTH_PX)[:, None])
    return (255 * colors).round().byte().expand(_BAR_HEIGHT_PX, -1, -1).contiguous().numpy()


def image_metrics(
    outputs: Dict[str, Any], observed: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w 1"]
) -> Tuple[Float[Tensor, "h w"], Dict[str, float]]:
    """Angular error of the rendered normals, and its mean and the mask IoU.

    Args:
        outputs: Outputs of the view: `normals_camera` and `accumulation`.
        observed: Normals in camera space, OpenCV axes; zero where there is none.
        mask: Mask of the object.

    Returns:
        Error in degrees, 0 on pixels without a normal or outside the rendered surface; metrics by name.
    """
    rendered, surface = outputs["normals_camera"], outputs["accumulation"] > 0.5
    both = (mask & surface)[..., 0] & observed.ne(0).any(dim=-1)
    if not bool(both.any()):
        CONSOLE.log("Evaluation: the surface is not visible where this view has normals.")
    error_deg = torch.where(both, torch.rad2deg(angles(rendered, observed)), 0.0)
    return error_deg, {
        "normal_mae_deg": float(error_deg[both].mean()) if bool(both.any()) else 180.0,
        "mask_iou": float((mask & surface).sum() / (mask | surface).sum()),
    }


def rendered_normals_image(outputs: Dict[str, Any]) -> Float[Tensor, "h w 3"]:
    """Color image of a view's rendered normals, white off the surface."""
    return normals_to_rgb(outputs["normals_camera"], outputs["accumulation"] > 0.5)


def comparison_images(
    outputs: Dict[str, Any],
    observed: Float[Tensor, "h w 3"],
    mask: Bool[Tensor, "h w 1"],
    error_deg: Float[Tensor, "h w"],
) -> Dict[str, Tensor]:
    """Images by name: observed beside rendered normals, their angular error, accumulation, and depth."""
    return {
        "normals": torch.cat([normals_to_rgb(observed, mask), rendered_normals_image(outputs)], dim=1),
        "angular_error": error_colors(error_deg),
        "accumulation": outputs["accumulation"].expand(-1, -1, 3),
        "depth": depth_image(outputs["depth"][..., 0], outputs["accumulation"][..., 0] > 0.5),
    }

# SPDX-License-Identifier: Apache-2.0
"""Each view of a result as three small pictures, cut to the object: known normals, rendered normals, their angle."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pmni_nerfstudio.data.images import data_uri
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.picture import object_windows
from pmni_nerfstudio.geometry.normals import angular_error_deg, normals_to_rgb
from pmni_nerfstudio.report.outcome import Outcome

SIDE_PX = 380
"""Longer side of the pictures at most: about two for a pixel of the page, and enough to enlarge them a little."""

SCALE_ENDS_DEG = (1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 90.0)
"""Where the colour scale of errors may end."""

_QUALITY = 82


@dataclass(frozen=True)
class ViewStrip:
    """One view. Pictures are data URIs."""

    name: str
    held_out: bool
    known: str
    """Normals that the result is compared with."""
    rendered: str
    error: str
    size: tuple[int, int]
    """Width and height of the pictures in pixels."""
    mae_deg: float | None
    """As measured by `pmni eval`, mean over the mask's pixels that show the surface."""
    mask_iou: float | None
    rot_deg: float | None
    """Angle between the view's orientation and the true one, where that is known."""
    position: float | None
    """Distance between the camera's centre and the true one, in the data's units."""


def errors_deg(outcome: Outcome) -> list[np.ndarray]:
    """Angular errors of each view, (h, w) float16 degrees within the object's window; NaN off the mask, 90 where the
    result has no surface.

    Raises:
        PmniError: the maps' size is not the scene's.
        ValueError: the outcome lacks a scene or maps.
    """
    scene, known = _needed(outcome)
    found = []
    for i, (name, window) in enumerate(zip(scene.names, object_windows(scene.masks))):
        rendered = outcome.rendered_normals(name)
        if rendered.shape[:2] != (scene.height, scene.width):
            raise PmniError(
                f"{outcome.folder}: rendered maps are {rendered.shape[1]}x{rendered.shape[0]} and {scene.root}'s "
                f"{scene.width}x{scene.height}: measure again with pmni eval"
            )
        angle = angular_error_deg(rendered[window], known[i][window])
        found.append(np.where(scene.masks[i][window], angle, np.nan).astype(np.float16))
    return found


def scale_end_deg(errors: Sequence[np.ndarray]) -> float:
    """End of a colour scale in degrees that shows all but the largest twentieth of the errors."""
    most = float(np.percentile(np.concatenate([error[np.isfinite(error)][::7] for error in errors]), 95))
    return next((end for end in SCALE_ENDS_DEG if end >= most), SCALE_ENDS_DEG[-1])


def view_strips(outcome: Outcome, errors: Sequence[np.ndarray], end_deg: float) -> list[ViewStrip]:
    """Strips of all views.

    Args:
        outcome: with scene and maps.
        errors: its own, of `errors_deg`.
        end_deg: end of the colour scale.
    """
    from matplotlib import colormaps

    scene, known = _needed(outcome)
    colours = colormaps["magma_r"].with_extremes(bad="white")
    strips = []
    for i, (view, window) in enumerate(zip(outcome.record["views"], object_windows(scene.masks))):
        rendered = outcome.rendered_normals(view["name"])[window]
        pictures = [
            _thumbnail(normals_to_rgb(known[i][window].astype(np.float32), scene.masks[i][window][..., None])),
            _thumbnail(normals_to_rgb(rendered, (rendered != 0).any(axis=-1, keepdims=True))),
            _thumbnail(colours(errors[i].astype(np.float32) / end_deg)[..., :3]),
        ]
        strips.append(
            ViewStrip(
                view["name"],
                view["held_out"],
                *(webp_uri(picture) for picture in pictures),
                size=pictures[0].size,
                mae_deg=view["mae_deg"],
                mask_iou=view["mask_iou"],
                rot_deg=view["rot_deg"],
                position=view["position"],
            )
        )
    return strips


def colour_stops(count: int = 17) -> str:
    """The errors' colours from zero on, as the stops of a CSS gradient."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return ", ".join(to_hex(colour) for colour in colormaps["magma_r"](np.linspace(0, 1, count)))


def webp_uri(picture: Image.Image) -> str:
    """A picture as a data URI, WebP."""
    buffer = io.BytesIO()
    picture.save(buffer, "webp", quality=_QUALITY, method=4)
    return data_uri(buffer.getvalue(), "image/webp")


def _thumbnail(rgb: np.ndarray) -> Image.Image:
    """(H, W, 3) in [0, 1] as a picture of SIDE_PX at most."""
    picture = Image.fromarray(np.round(255 * rgb).astype(np.uint8))
    picture.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    return picture


def _needed(outcome: Outcome) -> tuple[Scene, np.ndarray]:
    scene, known = outcome.scene, outcome.known_normals
    if scene is None or known is None or not outcome.has_maps:
        raise ValueError("outcome: lacks its scene or its maps")
    return scene, known

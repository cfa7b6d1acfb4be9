# SPDX-License-Identifier: Apache-2.0
"""Pictures of each view of a result, cropped to the object: reference normals, rendered normals, angular error."""

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
from pmni_nerfstudio.evaluation.stored_result import StoredResult
from pmni_nerfstudio.geometry.normals import angular_error_deg, normals_to_rgb

MAX_SIDE_PX = 380
"""Maximum length of a picture's longer side: about twice its size on the page, which leaves room to enlarge it."""

SCALE_ENDS_DEG = (1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 90.0)
"""Candidates for the upper end of the error's color scale."""

_COLOR_STOPS = 17
_QUALITY = 82


@dataclass(frozen=True)
class ViewStrip:
    """Pictures (data URIs) and metrics of one view."""

    name: str
    held_out: bool
    reference: str
    """Normals that the result is compared with."""
    rendered: str
    error: str
    size: tuple[int, int]
    """Width and height of the pictures in pixels."""
    mae_deg: float | None
    """Mean angular error of the normals over pixels with reference normals that show the surface, from `pmni eval`."""
    median_deg: float | None
    """Median of the same errors."""
    mask_iou: float | None
    rot_deg: float | None
    """Rotation error of the pose, if ground truth is known."""
    position: float | None
    """Distance between estimated and true camera center, in the data's units."""


def errors_deg(result: StoredResult) -> list[np.ndarray]:
    """Angular errors of each view, (h, w) float16 degrees, cropped to the object.

    They are NaN where there is no reference normal, and 90 where the result has no surface.

    Raises:
        PmniError: The rendered maps differ in size from the scene's.
        ValueError: The result has no scene or no maps.
    """
    scene, reference = _scene_and_reference(result)
    found = []
    for i, window in enumerate(object_windows(scene.masks)):
        angle = angular_error_deg(_rendered(result, scene, i)[window], reference[i][window])
        known = scene.masks[i][window] & (reference[i][window] != 0).any(axis=-1)
        found.append(np.where(known, angle, np.nan).astype(np.float16))
    return found


def scale_end_deg(errors: Sequence[np.ndarray]) -> float:
    """Upper end of a color scale in degrees that covers the 95th percentile of the errors."""
    most = float(np.percentile(np.concatenate([error[np.isfinite(error)][::7] for error in errors]), 95))
    return next((end for end in SCALE_ENDS_DEG if end >= most), SCALE_ENDS_DEG[-1])


def view_strips(result: StoredResult, errors: Sequence[np.ndarray], end_deg: float) -> list[ViewStrip]:
    """Make the strips of all views.

    Args:
        result: Evaluated result with scene and maps.
        errors: Errors of the result, from `errors_deg`.
        end_deg: Upper end of the color scale in degrees.
    """
    from matplotlib import colormaps

    scene, reference = _scene_and_reference(result)
    colormap = colormaps["magma_r"].with_extremes(bad="white")
    strips = []
    for i, (view, window) in enumerate(zip(result.record["views"], object_windows(scene.masks))):
        rendered = _rendered(result, scene, i)[window]
        pictures = [
            _thumbnail(normals_to_rgb(reference[i][window].astype(np.float32), scene.masks[i][window][..., None])),
            _thumbnail(normals_to_rgb(rendered, (rendered != 0).any(axis=-1, keepdims=True))),
            _thumbnail(colormap(errors[i].astype(np.float32) / end_deg)[..., :3]),
        ]
        strips.append(
            ViewStrip(
                view["name"],
                view["held_out"],
                *(webp_uri(picture) for picture in pictures),
                size=pictures[0].size,
                mae_deg=view["mae_deg"],
                median_deg=view.get("median_deg"),
                mask_iou=view["mask_iou"],
                rot_deg=view["rot_deg"],
                position=view["position"],
            )
        )
    return strips


def color_stops() -> str:
    """Colors of the error scale as the stops of a CSS gradient."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return ", ".join(to_hex(color) for color in colormaps["magma_r"](np.linspace(0, 1, _COLOR_STOPS)))


def webp_uri(picture: Image.Image) -> str:
    """Encode a picture as a WebP data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "webp", quality=_QUALITY, method=4)
    return data_uri(buffer.getvalue(), "image/webp")


def _thumbnail(rgb: np.ndarray) -> Image.Image:
    """Picture of (H, W, 3) values in [0, 1], downscaled to MAX_SIDE_PX if larger."""
    picture = Image.fromarray(np.round(255 * rgb).astype(np.uint8))
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
    return picture


def _rendered(result: StoredResult, scene: Scene, view: int) -> np.ndarray:
    """Rendered normals (H, W, 3) of a view, padded like the scene's."""
    rendered, frame = result.rendered_normals(scene.names[view]), scene.frame(view)
    padded = np.zeros((scene.height, scene.width, 3), dtype=rendered.dtype)
    if rendered.shape != padded[frame].shape:
        height, width = padded[frame].shape[:2]
        raise PmniError(
            f"{result.folder}: rendered maps are {rendered.shape[1]}x{rendered.shape[0]}, but those of {scene.root} "
            f"are {width}x{height}; evaluate again with pmni eval"
        )
    padded[frame] = rendered
    return padded


def _scene_and_reference(result: StoredResult) -> tuple[Scene, np.ndarray]:
    scene, reference = result.scene, result.reference_normals
    if scene is None or reference is None or not result.has_maps:
        raise ValueError("result: has no scene or no rendered maps")
    return scene, reference

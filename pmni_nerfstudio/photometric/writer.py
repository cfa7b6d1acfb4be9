# SPDX-License-Identifier: Apache-2.0
"""Writing of solved views as a scene folder, with albedo, confidence and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import trimesh

from pmni_nerfstudio.data.atomic import write_json
from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.data.scene import CAMERA_SPACE, IMAGES
from pmni_nerfstudio.data.scene_writer import write_scene
from pmni_nerfstudio.geometry.normals import normals_to_rgb
from pmni_nerfstudio.photometric.view_maps import ViewMaps

ALBEDO, GRAY_ALBEDO, CONFIDENCE = "albedo", "albedo_gray", "confidence"
RESIDUALS, NORMAL_PICTURES = "residual", "normal_preview"
SUMMARY = "photometric_result.json"
_WHITE_QUANTILE = 0.999
"""Albedo at this quantile of all views is written at nine tenths of the full scale."""
_RESIDUAL_END = 0.2
"""Relative residual at the end of the color scale."""


def write_maps(
    folder: Path,
    names: Sequence[str],
    maps: Sequence[ViewMaps],
    K: np.ndarray,
    c2w: np.ndarray | None,
    world_from_unit: np.ndarray,
    mesh: trimesh.Trimesh | None,
    source: dict[str, Any],
) -> None:
    """Write the scene and, beside it, what the rest of the package does not read.

    Args:
        folder: empty folder.
        names: of the N views, in natural order.
        maps: of the views.
        K: (N, 3, 3).
        c2w: (N, 4, 4), in the unit-sphere world; None without poses.
        world_from_unit: (4, 4) similarity.
        mesh: ground truth in the data world.
        source: what the maps were computed from, for the summary.
    """
    write_scene(
        folder,
        names=names,
        K=K,
        c2w=c2w,
        world_from_unit=world_from_unit,
        masks=np.stack([view.mask for view in maps]),
        normals=np.stack([view.normals for view in maps]),
        mesh=mesh,
        normals_folder=CAMERA_SPACE,
    )
    values = np.concatenate([view.albedo[view.valid] for view in maps])
    white = max(float(np.quantile(values, _WHITE_QUANTILE)) / 0.9, 1e-12)
    is_color = maps[0].albedo.shape[2] == 3
    for sub in (ALBEDO, CONFIDENCE, RESIDUALS, NORMAL_PICTURES, IMAGES, *[GRAY_ALBEDO] * is_color):
        (folder / sub).mkdir()
    for name, view in zip(names, maps):
        albedo = np.clip(view.albedo / white, 0, 1)
        stored = np.round(65535 * albedo).astype(np.uint16)
        write_png(folder / ALBEDO / f"{name}.png", stored if is_color else stored[..., 0])
        if is_color:
            write_png(folder / GRAY_ALBEDO / f"{name}.png", np.round(65535 * albedo.mean(axis=2)).astype(np.uint16))
        picture = np.round(255 * albedo ** (1 / 2.2)).astype(np.uint8)
        write_png(folder / IMAGES / f"{name}.png", np.broadcast_to(picture, (*view.mask.shape, 3)).copy())
        write_png(folder / CONFIDENCE / f"{name}.png", np.round(255 * view.confidence).astype(np.uint8))
        write_png(folder / RESIDUALS / f"{name}.png", residual_picture(view))
        colors = normals_to_rgb(view.normals, view.valid[..., None])
        write_png(folder / NORMAL_PICTURES / f"{name}.png", np.round(255 * colors).astype(np.uint8))
    summary = {
        **source,
        "albedo_at_full_scale": white,
        "views": [{"name": name, **statistics(view)} for name, view in zip(names, maps)],
    }
    write_json(folder / SUMMARY, summary)


def statistics(view: ViewMaps) -> dict[str, float]:
    """Figures of one view."""
    valid = view.valid
    return {
        "valid_share": round(float(valid.sum() / view.mask.sum()), 4),
        "median_residual": round(float(np.median(view.residual[valid])), 4),
        "median_unexplained": round(float(np.median(view.unexplained[valid])), 4),
        "mean_confidence": round(float(view.confidence[valid].mean()), 4),
        "shadow_share": round(float(view.shadowed[view.mask].mean()), 4),
        "highlight_share": round(float(view.highlights[view.mask].mean()), 4),
    }


def residual_picture(view: ViewMaps) -> np.ndarray:
    """Relative residuals (H, W, 3) uint8: black is 0, pale yellow 0.2 or more; gray without a normal, white off the mask."""
    scaled = np.round(255 * np.clip(view.residual / _RESIDUAL_END, 0, 1)).astype(np.uint8)
    colors = cv2.cvtColor(cv2.applyColorMap(scaled, cv2.COLORMAP_MAGMA), cv2.COLOR_BGR2RGB)
    colors[~view.valid] = 128
    colors[~view.mask] = 255
    return colors

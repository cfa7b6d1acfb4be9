# SPDX-License-Identifier: Apache-2.0
"""Rendered normal and depth maps of the training views, at the optimised poses.

Beneath the output folder: `normal_camera_space/NN.exr` (camera space as in the scene's files: x right, y up, z towards
the viewer; zero off the object), `normal_preview/NN.png` (the same as a picture), `depth/NN.exr` (distance from the
camera's centre *along the pixel's ray*, not z depth, in the data's units; zero off the object) and
`depth_preview/NN.png` (near is bright).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.models.base_model import Model
from rich.console import Console
from rich.progress import track

from pmni_nerfstudio.data.dataset import PmniDataset, normals_to_rgb
from pmni_nerfstudio.data.images import write_exr, write_png

NORMALS, NORMALS_PREVIEW = "normal_camera_space", "normal_preview"
DEPTHS, DEPTHS_PREVIEW = "depth", "depth_preview"

_FILE_FROM_OPENCV = np.array([1.0, -1.0, -1.0])


def write_maps(folder: Path, model: Model, dataset: PmniDataset, progress: bool = True) -> list[Path]:
    """Render every training view at its optimised pose and write its four maps.

    Args:
        folder: that exists.
        model: whose outputs for a camera have `normals_camera` (unit, OpenCV camera axes), `depth` (along the unit
            ray, in radii of the scene) and `accumulation`.
        dataset: the training views.
        progress: show a progress bar.

    Returns:
        The folders.
    """
    folders = [folder / name for name in (NORMALS, NORMALS_PREVIEW, DEPTHS, DEPTHS_PREVIEW)]
    for made in folders:
        made.mkdir(exist_ok=True)
    size = float(np.cbrt(np.linalg.det(dataset.scene.world_from_unit[:3, :3])))
    console = Console(stderr=True)
    for i in track(range(len(dataset)), "Rendering maps", console=console, transient=True, disable=not progress):
        name = dataset.scene.names[dataset.views[i]]
        with torch.no_grad():
            outputs = model.get_outputs_for_camera(dataset.cameras[i : i + 1].to(model.device))
        normals, depth, accumulation = (outputs[k].float().cpu() for k in ("normals_camera", "depth", "accumulation"))
        hit = accumulation > 0.5
        distance = torch.where(hit, depth * size, 0.0)[..., 0].numpy()
        write_exr(folders[0] / f"{name}.exr", torch.where(hit, normals, 0.0).numpy() * _FILE_FROM_OPENCV)
        write_png(folders[1] / f"{name}.png", (normals_to_rgb(normals, hit) * 255).round().byte().numpy())
        write_exr(folders[2] / f"{name}.exr", distance)
        write_png(folders[3] / f"{name}.png", depth_picture(distance))
    return folders


def depth_picture(depth: Float[np.ndarray, "H W"]) -> np.ndarray:
    """(H, W) uint8: near is bright, black where the depth is zero."""
    known = depth > 0
    if not known.any():
        return np.zeros(depth.shape, dtype=np.uint8)
    near, far = depth[known].min(), depth[known].max()
    share = (far - depth) / max(far - near, 1e-6 * far)
    return np.where(known, np.round(55 + 200 * share), 0).astype(np.uint8)

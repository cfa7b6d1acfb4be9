# SPDX-License-Identifier: Apache-2.0
"""Rendered normal and depth maps of views.

Files below the output folder, all zero off the object:
    `normal_camera_space/NN.exr`: unit normals in the axes of stored normals (x right, y up, z towards the viewer).
    `normal_preview/NN.png`: the same as colors.
    `depth/NN.exr`: distance from the camera center *along the pixel's ray*, not z depth, in the data's units.
    `depth_preview/NN.png`: the same in gray; near is bright.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from rich.console import Console
from rich.progress import track

from pmni_nerfstudio.chunks import chunks_within
from pmni_nerfstudio.data.images import write_exr, write_png
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.geometry.normals import normals_to_rgb
from pmni_nerfstudio.geometry.transforms import flip_y_and_z, scale_of
from pmni_nerfstudio.model.pmni_model import PmniModel

NORMALS, NORMALS_PREVIEW = "normal_camera_space", "normal_preview"
DEPTHS, DEPTHS_PREVIEW = "depth", "depth_preview"


@dataclass(frozen=True)
class RenderedView:
    """Maps rendered for one camera; zero off the object."""

    normals: Float[np.ndarray, "H W 3"]
    """Unit normals, OpenCV camera axes."""
    depth: Float[np.ndarray, "H W"]
    """Distance along the pixel's ray, in the data's units."""


def render_views(
    model: PmniModel, cameras: Cameras, world_from_unit: Float[np.ndarray, "4 4"]
) -> Iterator[RenderedView]:
    """Render the maps of one camera after another, with a progress bar.

    Args:
        model: model to render.
        cameras: cameras in the unit-sphere world; one whose metadata number it as a training view is rendered from its
            optimized pose.
        world_from_unit: similarity to the data world, whose scale turns depths into the data's units.

    Raises:
        PmniError: the GPU's memory runs out even with the smallest chunk of rays.
    """
    scale = scale_of(world_from_unit)
    console = Console(stderr=True)
    for i in track(range(len(cameras)), "Rendering maps", console=console, transient=True):
        outputs = model.render_camera(cameras[i : i + 1].to(model.device))
        normals, depth, accumulation = (
            outputs[name].float().cpu() for name in ("normals_camera", "depth", "accumulation")
        )
        hit = accumulation > 0.5
        yield RenderedView(
            normals=torch.where(hit, normals, 0.0).numpy(), depth=torch.where(hit, depth * scale, 0.0)[..., 0].numpy()
        )


def make_map_folders(folder: Path) -> list[Path]:
    """Create the folders of the four kinds of map below an output folder, and return them."""
    folders = [folder / name for name in (NORMALS, NORMALS_PREVIEW, DEPTHS, DEPTHS_PREVIEW)]
    for map_folder in folders:
        map_folder.mkdir(parents=True, exist_ok=True)
    return folders


def write_maps(folder: Path, scene: Scene, index: int, view: RenderedView) -> None:
    """Write the four maps of a scene's view, without padding, into the folders that `make_map_folders` created."""
    name, frame = scene.names[index], scene.frame(index)
    view = RenderedView(view.normals[frame], view.depth[frame])
    normals, hit = torch.from_numpy(view.normals), torch.from_numpy(view.depth > 0)[..., None]
    write_exr(folder / NORMALS / f"{name}.exr", flip_y_and_z(view.normals))
    write_png(folder / NORMALS_PREVIEW / f"{name}.png", (normals_to_rgb(normals, hit) * 255).round().byte().numpy())
    write_exr(folder / DEPTHS / f"{name}.exr", view.depth)
    write_png(folder / DEPTHS_PREVIEW / f"{name}.png", depth_preview(view.depth))


def limit_ray_memory(model: PmniModel, max_memory: int | None) -> None:
    """Set the number of rays that a model renders at once to what fits a memory limit.

    Args:
        model: model whose chunk size is set.
        max_memory: bytes that one chunk may take in addition to what is loaded; None sets no limit.

    Raises:
        PmniError: the limit is too small for the smallest chunk.
    """
    most = model.ray_chunks.size
    model.ray_chunks = chunks_within(
        max_memory, most, "rays", lambda count: model(ray_bundle=_expensive_rays(model, count))
    )


def _expensive_rays(model: PmniModel, count: int) -> RayBundle:
    """Rays through the occupied cells and the center of the unit sphere, which take the most samples."""
    cells = torch.nonzero(model.grid.occupied)
    centers = (cells[torch.arange(count, device=cells.device) % len(cells)] + 0.5) * model.grid.cell - 1
    outward = torch.nn.functional.normalize(centers, dim=-1)
    return RayBundle(3 * outward, -outward, pixel_area=torch.full_like(outward[:, :1], 1e-6))


def depth_preview(depth: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Gray image of a depth map: near is bright, black where the depth is zero."""
    known = depth > 0
    if not known.any():
        return np.zeros(depth.shape, dtype=np.uint8)
    near, far = depth[known].min(), depth[known].max()
    nearness = (far - depth) / max(far - near, 1e-6 * far)
    return np.where(known, np.round(55 + 200 * nearness), 0).astype(np.uint8)

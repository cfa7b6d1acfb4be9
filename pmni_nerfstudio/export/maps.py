# SPDX-License-Identifier: Apache-2.0
"""Rendered normal and depth maps of views.

Beneath the output folder: `normal_camera_space/NN.exr` (camera space as in the scene's files: x right, y up, z towards
the viewer; zero off the object), `normal_preview/NN.png` (the same as a picture), `depth/NN.exr` (distance from the
camera's centre *along the pixel's ray*, not z depth, in the data's units; zero off the object) and
`depth_preview/NN.png` (near is bright).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from rich.console import Console
from rich.progress import track

from pmni_nerfstudio.chunks import chunks_within
from pmni_nerfstudio.data.images import write_exr, write_png
from pmni_nerfstudio.geometry.normals import normals_to_rgb
from pmni_nerfstudio.geometry.transforms import flip_y_and_z, scale_of
from pmni_nerfstudio.model.pmni_model import PmniModel

NORMALS, NORMALS_PREVIEW = "normal_camera_space", "normal_preview"
DEPTHS, DEPTHS_PREVIEW = "depth", "depth_preview"


@dataclass(frozen=True)
class RenderedView:
    """What a camera sees of a result; zero off the object."""

    normals: Float[np.ndarray, "H W 3"]
    """Unit, in the camera's OpenCV axes."""
    depth: Float[np.ndarray, "H W"]
    """Along the pixel's ray, in the data's units."""


def render_view(model: PmniModel, camera: Cameras, size: float) -> RenderedView:
    """Render one camera of the unit-sphere world.

    Args:
        model: whose `render_camera` gives `normals_camera` (unit, OpenCV camera axes), `depth` (along the unit
            ray, in radii of the scene) and `accumulation`.
        camera: at its optimised pose if its metadata say that it is a training view's.
        size: of the scene's radius in the data's units.

    Raises:
        PmniError: a GPU's memory runs out even with the fewest rays at once.
    """
    outputs = model.render_camera(camera.to(model.device))
    normals, depth, accumulation = (outputs[k].float().cpu() for k in ("normals_camera", "depth", "accumulation"))
    hit = accumulation > 0.5
    return RenderedView(
        normals=torch.where(hit, normals, 0.0).numpy(), depth=torch.where(hit, depth * size, 0.0)[..., 0].numpy()
    )


def map_folders(folder: Path) -> list[Path]:
    """The folders of the four maps, made."""
    folders = [folder / name for name in (NORMALS, NORMALS_PREVIEW, DEPTHS, DEPTHS_PREVIEW)]
    for made in folders:
        made.mkdir(parents=True, exist_ok=True)
    return folders


def write_view(folder: Path, name: str, view: RenderedView) -> None:
    """Write the four maps of a view, see above, into folders that `map_folders` made."""
    normals, hit = torch.from_numpy(view.normals), torch.from_numpy(view.depth > 0)[..., None]
    write_exr(folder / NORMALS / f"{name}.exr", flip_y_and_z(view.normals))
    write_png(folder / NORMALS_PREVIEW / f"{name}.png", (normals_to_rgb(normals, hit) * 255).round().byte().numpy())
    write_exr(folder / DEPTHS / f"{name}.exr", view.depth)
    write_png(folder / DEPTHS_PREVIEW / f"{name}.png", depth_picture(view.depth))


def bound_rays(model: PmniModel, max_memory: int | None) -> None:
    """Have a model render as many rays at once as so many bytes hold, beside what is loaded; None: no bound.

    Raises:
        PmniError: the memory doesn't suffice for the fewest.
    """
    most = model.ray_chunks.size
    model.ray_chunks = chunks_within(
        max_memory, most, "rays", lambda count: model(ray_bundle=_costly_rays(model, count))
    )


def rendered(
    model: PmniModel,
    cameras: Cameras,
    world_from_unit: Float[np.ndarray, "4 4"],
    progress: bool = True,
) -> Iterator[RenderedView]:
    """`render_view` of one camera after another.

    Args:
        model: to be seen.
        cameras: one or more.
        world_from_unit: similarity that leads to the data's world.
        progress: show a progress bar.
    """
    size = scale_of(world_from_unit)
    console = Console(stderr=True)
    for i in track(range(len(cameras)), "Rendering maps", console=console, transient=True, disable=not progress):
        yield render_view(model, cameras[i : i + 1], size)


def _costly_rays(model: PmniModel, count: int) -> RayBundle:
    """Rays that all go through the middle of the unit sphere, and by the surface."""
    cells = torch.nonzero(model.grid.occupied)
    centres = (cells[torch.arange(count, device=cells.device) % len(cells)] + 0.5) * model.grid.cell - 1
    outward = torch.nn.functional.normalize(centres, dim=-1)
    return RayBundle(3 * outward, -outward, pixel_area=torch.full_like(outward[:, :1], 1e-6))


def depth_picture(depth: Float[np.ndarray, "H W"]) -> np.ndarray:
    """(H, W) uint8: near is bright, black where the depth is zero."""
    known = depth > 0
    if not known.any():
        return np.zeros(depth.shape, dtype=np.uint8)
    near, far = depth[known].min(), depth[known].max()
    share = (far - depth) / max(far - near, 1e-6 * far)
    return np.where(known, np.round(55 + 200 * share), 0).astype(np.uint8)

# SPDX-License-Identifier: Apache-2.0
"""Comparison picture of a result: input normals, rendered normals, angular error and the shaded mesh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import trimesh

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.resample import resample_intrinsics
from pmni_nerfstudio.geometry.normals import angular_error_deg, normals_to_rgb
from pmni_nerfstudio.geometry.ray_casting import RayCaster, camera_normals

SUPERSAMPLING = 3
"""Rays per pixel along each axis for anti-aliasing of the shaded mesh."""

MESH_SCALE = 3
"""Resolution of the shaded mesh relative to the normal maps, since the mesh has finer detail than they do."""

CLAY = np.array([0.86, 0.80, 0.72])
"""Color of the mesh, linear RGB."""
LIGHTS = (((-0.5, -0.65, -0.6), 0.75, (1.0, 0.98, 0.94)), ((0.7, -0.1, -0.7), 0.25, (0.85, 0.92, 1.0)))
"""Lights: direction towards the light in OpenCV camera axes, intensity, color."""
AMBIENT = 0.12
"""Intensity of the ambient light."""
_MARGIN_PX = 4
"""Margin of the crop windows around the object."""


class PictureView(TypedDict):
    """One row of a comparison picture; normals are in OpenCV camera axes."""

    input: np.ndarray
    """(H, W, 3) input normals, zero where there is none."""
    rendered: np.ndarray
    """(H, W, 3) rendered normals, zero where there is no surface."""
    mask: np.ndarray
    """(H, W) bool, pixels of the object."""


def shaded_view(
    mesh: trimesh.Trimesh, rays: RayCaster, K: np.ndarray, c2w: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Render a mesh with diffuse shading under two lights fixed to the camera, on white.

    Args:
        mesh: Mesh in the world of the pose.
        rays: Ray caster of the same mesh.
        K: (3, 3) intrinsics, pixel centers at integers.
        c2w: (4, 4) pose, OpenCV axes.
        size: Image height and width in pixels.

    Returns:
        (H, W, 3) RGB in [0, 1].
    """
    height, width = size
    K = resample_intrinsics(K, (1, 1), (SUPERSAMPLING, SUPERSAMPLING))
    all_normals, distance = camera_normals(mesh, rays, K, c2w, width * SUPERSAMPLING, height * SUPERSAMPLING)
    on = np.isfinite(distance)
    normals = all_normals[on]
    light = np.full((len(normals), 3), AMBIENT)
    for direction, intensity, color in LIGHTS:
        cosine = normals @ (np.array(direction) / np.linalg.norm(direction))
        # wrap lighting: shading varies beyond the terminator too, so that shape stays visible in shadow
        light += intensity * np.clip((cosine + 0.25) / 1.25, 0, None)[:, None] * np.array(color)
    image = np.ones((*on.shape, 3))
    image[on] = np.clip(CLAY * light, 0, 1) ** (1 / 1.3)
    return image.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 3).mean((1, 3))


def object_windows(masks: np.ndarray) -> list[tuple[slice, slice]]:
    """Crop windows (rows, columns) around the object in each of the masks (N, H, W), all of the same size."""
    starts, stops = [], []
    for axis in (1, 2):  # rows, then columns
        covered = masks.any(axis=3 - axis)
        first, last = covered.argmax(1), covered.shape[1] - 1 - covered[:, ::-1].argmax(1)
        size = min(int((last - first).max()) + 1 + 2 * _MARGIN_PX, covered.shape[1])
        start = np.clip((first + last + 1 - size) // 2, 0, covered.shape[1] - size)
        starts.append(start)
        stops.append(start + size)
    return [(slice(y0, y1), slice(x0, x1)) for y0, x0, y1, x1 in zip(*starts, *stops)]


def comparison_picture(
    path: Path,
    views: Sequence[PictureView],
    mesh: trimesh.Trimesh,
    c2w: np.ndarray,
    K: np.ndarray,
    title: str,
    max_error_deg: float = 15.0,
) -> None:
    """Write a PNG with one row per view: input normals, rendered normals, angular error and the shaded mesh.

    All images are cropped to the object.

    Args:
        path: File to write.
        views: Rows of the picture, all of the same resolution; four is a good number.
        mesh: Mesh of the result, in the world of the poses.
        c2w: (len(views), 4, 4) poses at which to render the mesh, OpenCV axes.
        K: (3, 3) or (len(views), 3, 3) intrinsics, pixel centers at integers.
        title: Title of the picture, such as the main metrics.
        max_error_deg: Upper end of the error's color scale, in degrees.
    """
    # the object-oriented interface with the Agg canvas needs no global state and no display
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    frame_height, frame_width = views[0]["mask"].shape
    windows = object_windows(np.stack([view["mask"] for view in views]))
    height, width = views[0]["mask"][windows[0]].shape
    cell = 2.6
    figure = Figure(figsize=(4 * cell * width / height + 0.9, len(views) * cell + 0.75), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(views), 4, squeeze=False)
    scale = ScalarMappable(Normalize(0, max_error_deg), colormaps["magma_r"].with_extremes(bad="white"))
    rays = RayCaster(mesh)
    Ks = resample_intrinsics(np.broadcast_to(K, (len(views), 3, 3)), (1, 1), (MESH_SCALE, MESH_SCALE))
    for row, view, pose, k, window in zip(axes, views, c2w, Ks, windows, strict=True):
        mask = view["mask"]
        error = np.where(
            mask & (view["input"] != 0).any(-1), angular_error_deg(view["rendered"], view["input"]), np.nan
        )
        has_surface = (view["rendered"] != 0).any(-1)
        row[0].imshow(normals_to_rgb(view["input"], mask[..., None])[window])
        row[1].imshow(normals_to_rgb(view["rendered"], has_surface[..., None])[window])
        row[2].imshow(error[window], norm=scale.norm, cmap=scale.cmap, interpolation="nearest")
        row[2].set_xlabel(f"mean {np.nanmean(error):.2f}°, median {np.nanmedian(error):.2f}°", fontsize=9)
        size = (MESH_SCALE * frame_height, MESH_SCALE * frame_width)
        rows, columns = (slice(MESH_SCALE * w.start, MESH_SCALE * w.stop) for w in window)
        row[3].imshow(shaded_view(mesh, rays, k, pose, size)[rows, columns])
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("0.85")
    for axis, name in zip(axes[0], ("input normals", "rendered normals", "angular error", "mesh")):
        axis.set_title(name, fontsize=11)
    bar = figure.colorbar(scale, ax=axes, shrink=0.6, aspect=30, pad=0.01, extend="max")
    bar.set_label("degrees", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    figure.suptitle(title, fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)

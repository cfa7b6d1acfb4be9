# SPDX-License-Identifier: Apache-2.0
"""One picture to judge a result by: normals in, normals out, the angle between them, and the mesh itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import trimesh

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.geometry.cameras import pixel_rays
from pmni_nerfstudio.geometry.normals import angular_error_deg, normals_to_rgb
from pmni_nerfstudio.geometry.ray_casting import RayCaster

SUPERSAMPLING = 3
"""Rays per pixel along each axis in pictures of the mesh, which smooths its outline."""

MESH_SCALE = 3
"""Pixels of the mesh's picture for one of the maps', along each axis: the mesh holds more than the maps' pixels show."""

CLAY = np.array([0.86, 0.80, 0.72])
LIGHTS = (((-0.5, -0.65, -0.6), 0.75, (1.0, 0.98, 0.94)), ((0.7, -0.1, -0.7), 0.25, (0.85, 0.92, 1.0)))
"""Of the shading: direction to each light in camera axes (x right, y down, z forward), strength, colour."""
AMBIENT = 0.12


class PictureView(TypedDict):
    """One row of the picture; normals are in OpenCV camera axes."""

    input: np.ndarray
    """(H, W, 3) normals that the method was given."""
    rendered: np.ndarray
    """(H, W, 3) normals of the result; zero where it has no surface."""
    mask: np.ndarray
    """(H, W) bool."""


def shaded_view(
    mesh: trimesh.Trimesh, rays: RayCaster, K: np.ndarray, c2w: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """The mesh as clay under two lights that go with the camera, on white.

    Args:
        mesh: in the world of c2w.
        rays: the same mesh, ready for queries.
        K: (3, 3), integer pixel centres.
        c2w: (4, 4), OpenCV axes.
        size: height and width.

    Returns:
        (H, W, 3) RGB in [0, 1].
    """
    height, width = size
    origins, directions = pixel_rays(_finer(K, SUPERSAMPLING), c2w, width * SUPERSAMPLING, height * SUPERSAMPLING)
    hits = rays.cast(origins, directions)
    on = np.isfinite(hits.distance)
    normals = hits.interpolate(on, mesh.faces, mesh.vertex_normals) @ c2w[:3, :3]
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    light = np.full((len(normals), 3), AMBIENT)
    for towards, strength, colour in LIGHTS:
        cosine = normals @ (np.array(towards) / np.linalg.norm(towards))
        # light wraps a little round the edge, so that shadows keep their shape
        light += strength * np.clip((cosine + 0.25) / 1.25, 0, None)[:, None] * np.array(colour)
    image = np.ones((len(on), 3))
    image[on] = np.clip(CLAY * light, 0, 1) ** (1 / 1.3)
    return image.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 3).mean((1, 3))


def _finer(K: np.ndarray, factor: int) -> np.ndarray:
    """Intrinsics (3, 3) of an image with this many pixels for one, along each axis; pixel centres at integers."""
    fine = np.diag([factor, factor, 1.0]) @ K
    # the finer grid's centres lie half a fine pixel inside the coarse pixel's edge
    fine[:2, 2] += (factor - 1) / 2
    return fine


def object_windows(masks: np.ndarray, margin_px: int = 4) -> list[tuple[slice, slice]]:
    """Rows and columns round the object in each of masks (N, H, W), all of one size, inside the frame."""
    starts, stops = [], []
    for axis in (1, 2):  # rows of the frame, then columns
        covered = masks.any(axis=3 - axis)
        first, last = covered.argmax(1), covered.shape[1] - 1 - covered[:, ::-1].argmax(1)
        size = min(int((last - first).max()) + 1 + 2 * margin_px, covered.shape[1])
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
    """Write a PNG with a row for each view: input normals, rendered normals, angular error, the mesh shaded.

    The frames are cut to the object.

    Args:
        path: of the PNG.
        views: the rows, of one size; four or so.
        mesh: the result, in the world of c2w.
        c2w: (len(views), 4, 4) poses to see it from, OpenCV axes.
        K: (3, 3), integer pixel centres, or (len(views), 3, 3).
        title: say, the metrics.
        max_error_deg: end of the error's colour scale.
    """
    # the object interface with the Agg canvas: no global state, no display
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
    Ks = np.broadcast_to(K, (len(views), 3, 3))
    for row, view, pose, k, window in zip(axes, views, c2w, Ks, windows, strict=True):
        mask = view["mask"]
        error = np.where(mask, angular_error_deg(view["rendered"], view["input"]), np.nan)
        has_surface = (view["rendered"] != 0).any(-1)
        row[0].imshow(normals_to_rgb(view["input"], mask[..., None])[window])
        row[1].imshow(normals_to_rgb(view["rendered"], has_surface[..., None])[window])
        row[2].imshow(error[window], norm=scale.norm, cmap=scale.cmap, interpolation="nearest")
        row[2].set_xlabel(f"mean {np.nanmean(error):.2f}°, median {np.nanmedian(error):.2f}°", fontsize=9)
        size = (MESH_SCALE * frame_height, MESH_SCALE * frame_width)
        rows, columns = (slice(MESH_SCALE * w.start, MESH_SCALE * w.stop) for w in window)
        row[3].imshow(shaded_view(mesh, rays, _finer(k, MESH_SCALE), pose, size)[rows, columns])
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

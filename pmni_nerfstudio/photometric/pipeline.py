# SPDX-License-Identifier: Apache-2.0
"""From a capture to a scene folder: cameras, solution of all views, checks, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.camera_files import read_cameras
from pmni_nerfstudio.data.images import read_mask
from pmni_nerfstudio.data.map_checks import check_mask, check_size
from pmni_nerfstudio.data.result_files import read_mesh
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.cameras import strided_intrinsics
from pmni_nerfstudio.geometry.object_sphere import centroid_rays, nearest_point
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.importers.bounding_sphere import sphere_of_masks, sphere_of_points
from pmni_nerfstudio.photometric.capture import Capture, Layout
from pmni_nerfstudio.photometric.checks import check_lights, check_linear
from pmni_nerfstudio.photometric.description import DESCRIPTION
from pmni_nerfstudio.photometric.folders import FOLDERS
from pmni_nerfstudio.photometric.photographs import load_photographs
from pmni_nerfstudio.photometric.solver import SolverOptions
from pmni_nerfstudio.photometric.view_maps import ViewMaps, facing_viewer, solve_view
from pmni_nerfstudio.photometric.writer import write_maps

LAYOUTS: dict[str, Layout] = {"json": DESCRIPTION, "folders": FOLDERS}
"""Layouts by name, in the order in which they are tried."""
_MAX_HULL_PIXELS = 320_000
"""Masks with more pixels are subsampled for the visual hull."""


@dataclass(frozen=True)
class PhotometricOptions:
    """Settings of the conversion."""

    gamma: float | None = None
    """Power that makes image values linear; None: they are, which is checked."""
    focal: float | None = None
    """Focal length in pixels, for captures without cameras."""
    min_lights: int = 4
    """Fewest usable lights of a valid pixel."""
    depth_rounds: int = 2
    """Depth updates for near lights."""
    solver: SolverOptions = SolverOptions()


def read_capture(source: Path, axes: str | None) -> Capture:
    """Read a capture in any of the layouts.

    Raises:
        PmniError: The layout is unknown, or a file is missing or broken.
    """
    for layout in LAYOUTS.values():
        if layout.recognize(source):
            capture = layout.read(source, axes)
            if len(capture.views) < 2:
                raise PmniError(f"{source}: holds only one view; at least 2 are needed, each in a folder of its own")
            return capture
    raise PmniError(
        f"{source}: holds no images with known lights; give a folder with one folder for each view (images, mask.png, "
        "light_directions.txt or a .lp file), or a photometric.json"
    )


def solve_capture(
    source: Path,
    capture: Capture,
    folder: Path,
    options: PhotometricOptions,
    progress: Callable[[range], Iterable[int]] = lambda views: views,
) -> tuple[str, list[str]]:
    """Solve all views, two at a time, and write them as a scene, which is then read as training does.

    Args:
        source: file or folder of the capture, for messages.
        capture: what was read from it.
        folder: empty folder to write to.
        options: settings.
        progress: wraps the sequence of views, to show the progress.

    Returns:
        The result in words, and warnings of one line each.

    Raises:
        PmniError: A file is broken, or images, lights and cameras do not fit together.
    """
    masks = _masks(capture)
    K, poses, world_from_unit = _cameras(source, capture, masks, options.focal)
    distances = _distances(source, capture, masks, K, poses)

    def work(view: int) -> ViewMaps:
        item = capture.views[view]
        photographs = load_photographs(item, capture.saturation, options.gamma or 1.0)
        if view == 0:
            check_linear(item, photographs, options.gamma is not None)
        return solve_view(
            photographs, item.lights, K[view], distances[view], options.solver, options.min_lights, options.depth_rounds
        )

    order = range(len(capture.views))
    pool = ThreadPoolExecutor(max_workers=2)
    try:
        futures = [pool.submit(work, view) for view in order]
        maps = [futures[view].result() for view in progress(order)]
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C, skip the other views
    names = [view.name for view in capture.views]
    warnings = check_lights(source, names, maps, K, capture.axes)
    maps = [facing_viewer(view, k) for view, k in zip(maps, K)]
    write_maps(
        folder,
        names,
        maps,
        K,
        None if poses is None else transform_poses(np.linalg.inv(world_from_unit), poses),
        world_from_unit,
        read_mesh(capture.mesh) if capture.mesh is not None and poses is not None else None,
        {"capture": str(source.resolve()), "light_axes": capture.axes, "settings": asdict(options)},
    )
    scene = read_scene(folder)
    valid = np.mean([view.valid.sum() / view.mask.sum() for view in maps])
    residual = np.mean([np.median(view.residual[view.valid]) for view in maps])
    summary = (
        f"{len(maps)} views of {masks.shape[2]}x{masks.shape[1]}, {'without' if poses is None else 'with'} poses, normals on "
        f"{valid:.1%} of the masks, median residual {residual:.1%}"
    )
    return summary, [*warnings, *scene.warnings]


def _masks(capture: Capture) -> np.ndarray:
    """Masks (N, H, W) of one size."""
    masks = []
    for view in capture.views:
        masks.append(read_mask(view.mask))
        check_mask(view.mask, masks[-1])
        check_size(view.mask, masks[-1].shape, masks[0].shape, capture.views[0].mask)
    return np.stack(masks)


def _cameras(
    source: Path, capture: Capture, masks: np.ndarray, focal: float | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """K (N, 3, 3), poses c2w (N, 4, 4) in the data world or None, and world_from_unit (4, 4)."""
    views = capture.views
    count, height, width = masks.shape
    if capture.cameras is not None:
        K, c2w, world_from_unit = read_cameras(capture.cameras, count, masks)
        return K, transform_poses(world_from_unit, c2w), world_from_unit
    given = [view.K for view in views if view.K is not None]
    if len(given) < count:
        if focal is None:
            raise PmniError(
                f"{source}: has no camera intrinsics; give --focal in pixels, or add intrinsics.json, K.txt (a 3x3 matrix) or "
                "cameras_sphere.npz"
            )
        given = [np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])] * count
    K = np.stack(given)
    poses = [view.c2w for view in views if view.c2w is not None]
    if len(poses) < count:
        if not np.allclose(K, K[0], rtol=1e-6):
            raise PmniError(
                f"{source}: intrinsics differ between views, which needs poses; give poses, or the same intrinsics"
            )
        return K, None, np.eye(4)
    c2w = np.stack(poses)
    if capture.mesh is not None:
        return K, c2w, sphere_of_points(np.asarray(read_mesh(capture.mesh).vertices))
    step = max(1, round(float(np.sqrt(masks[0].size / _MAX_HULL_PIXELS))))
    names = [view.name for view in views]
    return K, c2w, sphere_of_masks(names, masks[:, ::step, ::step], strided_intrinsics(K, step), c2w)


def _distances(
    source: Path, capture: Capture, masks: np.ndarray, K: np.ndarray, poses: np.ndarray | None
) -> list[float | None]:
    """Mean z depth of the visible surface in each view with near lights; from the poses where it is not given."""
    distances = [view.distance for view in capture.views]
    missing = [view.name for view in capture.views if view.lights.is_near and view.distance is None]
    if not missing:
        return distances
    if poses is None:
        raise PmniError(
            f"{source}: view {missing[0]} has near lights, but neither a distance nor a pose; give the object's mean distance"
        )
    rays = centroid_rays(K, masks)
    directions = np.einsum("nij,nj->ni", poses[:, :3, :3], rays / np.linalg.norm(rays, axis=1, keepdims=True))
    center, _ = nearest_point(poses[:, :3, 3], directions)
    depth = np.einsum("ni,ni->n", center - poses[:, :3, 3], poses[:, :3, 2])
    if (depth <= 0).any():
        name = capture.views[int(depth.argmin())].name
        raise PmniError(f"{source}: view {name} faces away from where the other views see the object; correct its pose")
    # The visible half of a sphere is on average 2/3 of its radius in front of its center.
    radius = np.sqrt(masks.sum(axis=(1, 2)) / np.pi) / np.sqrt(K[:, 0, 0] * K[:, 1, 1]) * depth
    return [float(given or z) for given, z in zip(distances, depth - 2 / 3 * radius)]

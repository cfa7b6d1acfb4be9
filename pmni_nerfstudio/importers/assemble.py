# SPDX-License-Identifier: Apache-2.0
"""Conversion of an imported source to a scene folder: pinhole cameras, the object in the unit sphere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from pmni_nerfstudio.data.close_ups import find_close_ups
from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.data.instances import INSTANCES, read_instances
from pmni_nerfstudio.data.listing import natural_key
from pmni_nerfstudio.data.map_checks import MAX_EDGE, border_share, check_mask
from pmni_nerfstudio.data.normals_folder import warn_of_lossy
from pmni_nerfstudio.data.resample import resample_intrinsics
from pmni_nerfstudio.data.result_files import read_mesh
from pmni_nerfstudio.data.scene import IMAGES, read_scene
from pmni_nerfstudio.data.scene_summary import SceneSummary, describe_sizes, summarize
from pmni_nerfstudio.data.scene_writer import write_scene
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.geometry.transforms import scale_of, transform_poses
from pmni_nerfstudio.importers.axes import camera_from_stored, estimate_axes
from pmni_nerfstudio.importers.bounding_sphere import sphere_of_masks, sphere_of_points
from pmni_nerfstudio.importers.further_maps import write_further_maps
from pmni_nerfstudio.importers.source import Axes, Frame, Source
from pmni_nerfstudio.importers.view_maps import load, map_intrinsics, photograph, resize, size_of, undistort
from pmni_nerfstudio.registration.views import Views

_MAX_HULL_PIXELS = 320_000
"""Masks with more pixels are subsampled for the visual hull."""


@dataclass(frozen=True, eq=False)
class Assembled:
    """Result of writing a source as a scene."""

    description: str
    """The scene's size, axes and unit sphere in words."""
    warnings: list[str]
    """One line each."""
    summary: SceneSummary
    """Summary of the scene, read back from its files."""


def assemble(
    source: Source,
    folder: Path,
    size: tuple[int, int] | None = None,
    axes: Axes | None = None,
    fit: Path | None = None,
    refit: bool = False,
) -> Assembled:
    """Write a source as a scene folder and validate it by reading it as training does.

    Args:
        source: data set to convert.
        folder: empty folder to write to.
        size: width and height of all maps; by default each view keeps its own, and without poses, which need one size,
            the most frequent one is taken.
        axes: axes of the stored normals; by default those of the format, or an estimate from the maps.
        fit: mesh in the source's world to fit the unit sphere to.
        refit: fit the unit sphere to the masks even if the source has one.

    Raises:
        PmniError: The source is invalid.
    """
    frames = sorted(source.frames, key=lambda frame: natural_key(frame.name))
    if len(frames) < 2:
        raise PmniError(f"{frames[0].normals if frames else folder}: is the only view; at least 2 are needed")
    is_posed = frames[0].c2w is not None
    if axes is not None:
        decided = "--axes"
    else:
        decided = "decided by the maps" if source.axes is None else "by the format, the tool or the folder's name"
    axes = axes or source.axes or estimate_axes(frames)
    if axes == "world" and not is_posed:
        raise PmniError(f"{frames[0].normals}: world-space normals need poses; use camera-space normals")

    sizes = _map_sizes(frames, size, is_posed)
    normals, masks, K, source_K, warnings = _load_all(frames, axes, sizes, is_posed)
    warnings += warn_of_lossy([frame.normals for frame in frames])
    sizes_differ = len(set(sizes)) > 1
    world_from_unit, c2w, pose_summary = np.eye(4), None, "without poses"
    mesh = read_mesh(source.mesh) if source.mesh is not None else None
    if is_posed:
        poses = np.stack([frame.c2w for frame in frames if frame.c2w is not None])
        if fit is not None:
            world_from_unit, origin = sphere_of_points(np.asarray(read_mesh(fit).vertices)), f"fitted to {fit.name}"
        elif source.world_from_unit is not None and not refit:
            world_from_unit, origin = source.world_from_unit, "given by the source"
        elif mesh is not None and not refit:
            world_from_unit, origin = sphere_of_points(np.asarray(mesh.vertices)), "fitted to the ground truth mesh"
        else:
            views = Views(tuple(frame.name for frame in frames), normals, masks, K)
            whole = _whole_views(masks, sizes)
            views, chosen = views.subset(whole), poses[whole]
            step = max(1, round(float(np.sqrt(masks[0].size / _MAX_HULL_PIXELS))))
            world_from_unit, origin = sphere_of_masks(views.strided(step), chosen), "fitted to the masks"
        c2w = transform_poses(np.linalg.inv(world_from_unit), poses)
        of_frames = [mask[:height, :width] for mask, (width, height) in zip(masks, sizes)]
        for frame, mask, is_close_up in zip(frames, of_frames, find_close_ups(of_frames, K, c2w)):
            check_mask(frame.mask or frame.normals, mask, bool(is_close_up))
        pose_summary = f"with poses; unit sphere of radius {scale_of(world_from_unit):.4g} units, {origin}"
    write_scene(
        folder,
        names=[frame.name for frame in frames],
        K=K,
        c2w=c2w,
        world_from_unit=world_from_unit,
        masks=masks,
        normals=normals,
        mesh=mesh if is_posed else None,
        sizes=np.array(sizes) if sizes_differ else None,
    )
    _write_photographs(folder, frames, source_K, K, sizes)
    write_further_maps(folder, frames, source_K, K, sizes)
    scene = read_scene(folder)
    if (folder / INSTANCES).is_dir():
        warnings += read_instances(scene)[1]
    summary = summarize(scene)
    size_and_axes = f"{len(frames)} views of {describe_sizes(sizes)}, normals' axes: {axes} ({decided})"
    return Assembled(
        f"{size_and_axes}, {pose_summary}",
        _summarized([*source.warnings, *warnings, *scene.warnings, *summary.warnings()]),
        summary,
    )


def _map_sizes(frames: Sequence[Frame], size: tuple[int, int] | None, is_posed: bool) -> list[tuple[int, int]]:
    """Width and height of the maps of each view."""
    if size is not None:
        return [size] * len(frames)
    sizes = [size_of(frame.normals) for frame in frames]
    return sizes if is_posed else [Counter(sizes).most_common(1)[0][0]] * len(frames)


def _whole_views(masks: np.ndarray, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Views whose frame does not cut the object, to which the unit sphere is fitted; all if they are fewer than three."""
    is_whole = [border_share(mask[:height, :width]) <= MAX_EDGE for mask, (width, height) in zip(masks, sizes)]
    whole = [view for view in range(len(masks)) if is_whole[view]]
    return whole if len(set(sizes)) > 1 and len(whole) >= 3 else list(range(len(masks)))


def _load_all(
    frames: Sequence[Frame], axes: Axes, sizes: Sequence[tuple[int, int]], is_posed: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Normals (N, H, W, 3) float32, masks (N, H, W), K (N, 3, 3), the source's K at the same size, and warnings.

    Maps are padded with zeros to the largest size.
    """
    console = Console(stderr=True)
    count = len(frames)
    shape = (count, max(height for _, height in sizes), max(width for width, _ in sizes))
    normals, masks = np.zeros((*shape, 3), dtype=np.float32), np.zeros(shape, dtype=bool)
    K, source_K = np.empty((count, 3, 3)), np.empty((count, 3, 3))
    warnings = []
    for view in track(range(count), "Preparing", console=console, transient=True):
        frame, size = frames[view], sizes[view]
        stored, mask, lines = load(frame)
        was_full = mask.all()
        warnings += lines
        map_size = (mask.shape[1], mask.shape[0])
        map_K = map_intrinsics(frame, map_size)
        source_K[view] = resample_intrinsics(map_K, map_size, size)
        # Scenes without poses have one K for all views.
        K[view] = source_K[view] if is_posed else source_K[0]
        maps = stored @ camera_from_stored(frame, axes).T.astype(np.float32)
        maps, mask = undistort(maps, mask, map_K, frame.lens, resample_intrinsics(K[view], size, map_size))
        rows, columns = slice(0, size[1]), slice(0, size[0])
        normals[view, rows, columns], masks[view, rows, columns] = resize(maps, mask, size)
        is_full = masks[view, rows, columns].all() and not was_full
        if not normals[view].any() or is_full:
            raise SceneError(
                f"{frame.normals}: its mask is full, or has no normals, at {size[0]}x{size[1]}; give a larger --size or check the "
                "camera's distortion"
            )
    return normals, masks, K, source_K, warnings


def _write_photographs(
    folder: Path, frames: Sequence[Frame], K: np.ndarray, new_K: np.ndarray, sizes: Sequence[tuple[int, int]]
) -> None:
    """Write the photographs if all views have one; they are only for display."""
    if any(frame.image is None for frame in frames):
        return
    (folder / IMAGES).mkdir()
    for view, frame in enumerate(frames):
        picture = photograph(frame, K[view], new_K[view], sizes[view])
        if picture is not None:
            write_png(folder / IMAGES / f"{frame.name}.png", picture)


def _summarized(warnings: Sequence[str]) -> list[str]:
    """First warning of each kind, with the number of further ones that differ only in the file or in numbers."""
    first: dict[str, str] = {}
    count: Counter[str] = Counter()
    for line in warnings:
        kind = "".join(letter for letter in line.split(": ", 1)[-1] if letter.isalpha())
        first.setdefault(kind, line)
        count[kind] += 1
    return [line + (f" (and {count[kind] - 1} more such)" if count[kind] > 1 else "") for kind, line in first.items()]

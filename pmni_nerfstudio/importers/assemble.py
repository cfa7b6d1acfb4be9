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

from pmni_nerfstudio.data.close_ups import find_close_ups, is_cut
from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.data.instances import INSTANCES, read_instances
from pmni_nerfstudio.data.listing import natural_key
from pmni_nerfstudio.data.map_checks import full_mask_error
from pmni_nerfstudio.data.normals_folder import warn_of_lossy
from pmni_nerfstudio.data.reduction import Reduction
from pmni_nerfstudio.data.resample import resample_intrinsics
from pmni_nerfstudio.data.result_files import read_mesh, write_mesh
from pmni_nerfstudio.data.scene import IMAGES, MESH, read_scene
from pmni_nerfstudio.data.scene_summary import SceneSummary, describe_sizes, summarize, summary_step
from pmni_nerfstudio.data.scene_writer import write_scene_cameras, write_view, write_whole_masks
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.geometry.cameras import strided_intrinsics
from pmni_nerfstudio.geometry.normals import rotate_in_place
from pmni_nerfstudio.geometry.transforms import OPENCV_FROM_STORED, scale_of, transform_poses
from pmni_nerfstudio.importers.axes import camera_from_stored, estimate_axes
from pmni_nerfstudio.importers.bounding_sphere import sphere_of_masks, sphere_of_points
from pmni_nerfstudio.importers.further_maps import write_further_maps
from pmni_nerfstudio.importers.source import Axes, Frame, Source
from pmni_nerfstudio.importers.view_maps import load, map_intrinsics, photograph, resize, size_of, undistort

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
    converted = _convert_maps(folder, frames, axes, sizes, is_posed)
    K, masks = converted.K, converted.masks
    warnings = converted.warnings + warn_of_lossy([frame.normals for frame in frames])
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
            whole = converted.whole_views() if len(set(sizes)) > 1 else list(range(len(frames)))
            names, strided_K = [frames[i].name for i in whole], strided_intrinsics(K[whole], converted.step)
            world_from_unit, origin = (
                sphere_of_masks(names, masks[whole], strided_K, poses[whole]),
                "fitted to the masks",
            )
        c2w = transform_poses(np.linalg.inv(world_from_unit), poses)
        close_ups = find_close_ups(converted.is_cut, K, c2w)
        for view in np.flatnonzero(converted.is_full & ~close_ups):
            raise full_mask_error(frames[view].mask or frames[view].normals)
        pose_summary = f"with poses; unit sphere of radius {scale_of(world_from_unit):.4g} units, {origin}"
    write_scene_cameras(folder, K, c2w, world_from_unit, sizes[0])
    if mesh is not None and is_posed:
        write_mesh(folder / MESH, mesh)
    _write_photographs(folder, frames, converted.source_K, K, sizes)
    write_further_maps(folder, frames, converted.source_K, K, sizes)
    summary_step = min(converted.summary_steps)
    scene = read_scene(folder, reduce=lambda height, width: Reduction(summary_step, smoothed=False))
    if (folder / INSTANCES).is_dir():
        warnings += read_instances(read_scene(folder))[1]
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


@dataclass(frozen=True, eq=False)
class _Converted:
    """What is kept of the maps of N views after they were written."""

    masks: np.ndarray
    """(N, H', W'), every step-th pixel; smaller views are padded with zeros."""
    step: int
    is_cut: np.ndarray
    """(N,) bool, whether the frame cuts the object."""
    is_full: np.ndarray
    """(N,) bool, whether the mask is full."""
    summary_steps: list[int]
    """Factor by which each view can be reduced for the summary."""
    K: np.ndarray
    """(N, 3, 3)."""
    source_K: np.ndarray
    """The source's K (N, 3, 3) at the same size."""
    warnings: list[str]

    def whole_views(self) -> list[int]:
        """Views whose frame does not cut the object, to which the unit sphere is fitted; all if they are fewer than three."""
        whole = np.flatnonzero(~self.is_cut)
        return whole.tolist() if len(whole) >= 3 else list(range(len(self.masks)))


def _convert_maps(
    folder: Path, frames: Sequence[Frame], axes: Axes, sizes: Sequence[tuple[int, int]], is_posed: bool
) -> _Converted:
    """Write masks and normal maps one view at a time, so that memory does not grow with their number.

    Args:
        folder: scene folder.
        frames: N views.
        axes: axes of the stored normals.
        sizes: width and height of the maps written of each view.
        is_posed: whether the views have poses, and so intrinsics of their own.
    """
    console = Console(stderr=True)
    count, largest = len(frames), np.array(sizes).max(axis=0)
    step = max(1, round(float(np.sqrt(largest.prod() / _MAX_HULL_PIXELS))))
    reduced = np.zeros((count, -(-largest[1] // step), -(-largest[0] // step)), dtype=bool)
    cut, full = np.empty(count, dtype=bool), np.empty(count, dtype=bool)
    steps, holes, warnings = [], [], []
    K, source_K = np.empty((count, 3, 3)), np.empty((count, 3, 3))
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
        rotate_in_place(stored, OPENCV_FROM_STORED.T @ camera_from_stored(frame, axes))  # to the axes of scene folders
        maps, mask = undistort(stored, mask, map_K, frame.lens, resample_intrinsics(K[view], size, map_size))
        maps, mask = resize(maps, mask, size)
        full[view] = mask.all()
        if not maps.any() or (full[view] and not was_full):
            raise SceneError(
                f"{frame.normals}: its mask is full, or has no normals, at {size[0]}x{size[1]}; give a larger --size or check the "
                "camera's distortion"
            )
        holes.append(write_view(folder, frame.name, maps, mask))
        kept = mask[::step, ::step]
        reduced[view, : kept.shape[0], : kept.shape[1]] = kept
        cut[view] = is_cut(mask)
        steps.append(summary_step(mask))
        del stored, maps, mask  # before the next view is read
    write_whole_masks(folder, [frame.name for frame in frames], holes)
    return _Converted(reduced, step, cut, full, steps, K, source_K, warnings)


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

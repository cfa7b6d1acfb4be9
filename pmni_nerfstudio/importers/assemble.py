# SPDX-License-Identifier: Apache-2.0
"""From a source that is understood to a scene folder: one size, one camera model, the object in the unit sphere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from pmni_nerfstudio.data.axes_check import weigh_axes
from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.data.listing import natural_key
from pmni_nerfstudio.data.resample import resample_intrinsics
from pmni_nerfstudio.data.result_files import read_mesh
from pmni_nerfstudio.data.scene import IMAGES, read_scene, write_scene
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.geometry.transforms import OPENCV_FROM_STORED, scale_of, transform_poses
from pmni_nerfstudio.importers.bounding_sphere import sphere_of_masks, sphere_of_points
from pmni_nerfstudio.importers.source import Axes, Frame, Prepared
from pmni_nerfstudio.importers.view_maps import load, map_intrinsics, photograph, resize, size_of, straighten
from pmni_nerfstudio.registration.views import Views

AXES: dict[Axes, np.ndarray] = {
    "camera": OPENCV_FROM_STORED,
    "opencv": np.eye(3),
    "directx": np.diag([1.0, 1.0, -1.0]),
}
"""From stored axes to OpenCV camera axes; the world's depend on the view."""
_JUDGED_VIEWS = 6
_CLEAR = 0.2
"""By how much the cues have to prefer other axes than the usual ones."""
_MOST_HULL_PIXELS = 320_000


def assemble(
    source: Prepared,
    folder: Path,
    size: tuple[int, int] | None = None,
    axes: Axes | None = None,
    fit: Path | None = None,
    refit: bool = False,
) -> tuple[str, list[str]]:
    """Write a scene folder, and read it again as training will.

    Args:
        source: to convert.
        folder: empty, to write to.
        size: width and height of the maps; by default the size that most views have.
        axes: of the stored normals; by default what the format says, or what fits the maps.
        fit: a mesh in the data's world that the unit sphere shall fit.
        refit: fit the unit sphere to the masks, although the source has one.

    Returns:
        What was written, in words, and warnings, a line each.

    Raises:
        PmniError: one line that says what is wrong with the source.
    """
    frames = sorted(source.frames, key=lambda frame: natural_key(frame.name))
    if len(frames) < 2:
        raise PmniError(f"{frames[0].normals if frames else folder}: is the only view: at least 2 are needed")
    is_posed = frames[0].c2w is not None
    axes = axes or source.axes or judge(frames)
    if axes == "world" and not is_posed:
        raise PmniError(f"{frames[0].normals}: world-space normals need poses: give camera-space normals")

    normals, masks, K, source_K, warnings = _load_all(frames, axes, size, is_posed)
    new_size = (masks.shape[2], masks.shape[1])
    world_from_unit, c2w, how = np.eye(4), None, "without poses"
    mesh = read_mesh(source.mesh) if source.mesh is not None else None
    if is_posed:
        poses = np.stack([frame.c2w for frame in frames if frame.c2w is not None])
        if fit is not None:
            world_from_unit, how = sphere_of_points(np.asarray(read_mesh(fit).vertices)), f"fitted to {fit.name}"
        elif source.world_from_unit is not None and not refit:
            world_from_unit, how = source.world_from_unit, "the source's own"
        elif mesh is not None and not refit:
            world_from_unit, how = sphere_of_points(np.asarray(mesh.vertices)), "fitted to the true surface"
        else:
            views = Views(tuple(frame.name for frame in frames), normals, masks, K)
            step = max(1, round(float(np.sqrt(masks[0].size / _MOST_HULL_PIXELS))))
            world_from_unit, how = sphere_of_masks(views.every(step), poses), "fitted to the masks"
        c2w = transform_poses(np.linalg.inv(world_from_unit), poses)
        how = f"with poses; unit sphere of {scale_of(world_from_unit):.4g} units, {how}"
    write_scene(
        folder,
        names=[frame.name for frame in frames],
        K=K,
        c2w=c2w,
        world_from_unit=world_from_unit,
        masks=masks,
        normals=normals,
        mesh=mesh if is_posed else None,
    )
    _write_photographs(folder, frames, source_K, K, new_size)
    scene = read_scene(folder)
    said = f"{len(frames)} views of {new_size[0]}x{new_size[1]}, normals' axes: {axes}, {how}"
    return said, _shortened([*source.warnings, *warnings, *scene.warnings])


def judge(frames: Sequence[Frame]) -> Axes:
    """Which axes stored normals most probably have: those that face the camera, lean outwards at the outline, and
    are a surface's. Camera axes unless others are clearly better."""
    chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, _JUDGED_VIEWS).round().astype(int))]
    candidates: tuple[Axes, ...] = ("camera", "opencv", "directx", "world")
    scores: dict[Axes, float] = {name: 0.0 for name in candidates if name != "world" or frames[0].c2w is not None}
    for frame in chosen:
        stored, mask, _ = load(frame)
        K = map_intrinsics(frame, (mask.shape[1], mask.shape[0]))
        for name in scores:
            turn = _turn(frame, name)
            cues = weigh_axes(stored @ turn.T.astype(np.float32), mask, K, turn)
            scores[name] += float(cues.facing[0] + cues.outline[0] + cues.integrable[0]) / len(chosen)
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > scores["camera"] + _CLEAR else "camera"


def _turn(frame: Frame, axes: Axes) -> np.ndarray:
    """Matrix (3, 3) from stored axes to the view's OpenCV camera axes."""
    if axes != "world":
        return AXES[axes]
    if frame.c2w is None:
        raise PmniError(f"{frame.normals}: world-space normals need poses: give camera-space normals")
    return frame.c2w[:3, :3].T


def _load_all(
    frames: Sequence[Frame], axes: Axes, size: tuple[int, int] | None, is_posed: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Normals (N, H, W, 3) float32, masks (N, H, W), K (N, 3, 3), K before straightening, warnings."""
    console = Console(stderr=True)
    if size is None:
        size = Counter(size_of(frame.normals) for frame in frames).most_common(1)[0][0]
    count = len(frames)
    normals = np.empty((count, size[1], size[0], 3), dtype=np.float32)
    masks = np.empty((count, size[1], size[0]), dtype=bool)
    K, source_K = np.empty((count, 3, 3)), np.empty((count, 3, 3))
    warnings = []
    for view in track(range(count), "Preparing", console=console, transient=True):
        frame = frames[view]
        stored, mask, lines = load(frame)
        warnings += lines
        map_size = (mask.shape[1], mask.shape[0])
        map_K = map_intrinsics(frame, map_size)
        source_K[view] = resample_intrinsics(map_K, map_size, size)
        # Without poses the layout has one camera for all views: the first one's.
        K[view] = source_K[view] if is_posed else source_K[0]
        maps = stored @ _turn(frame, axes).T.astype(np.float32)
        maps, mask = straighten(maps, mask, map_K, frame.lens, resample_intrinsics(K[view], size, map_size))
        normals[view], masks[view] = resize(maps, mask, size)
        if not masks[view].any() or masks[view].all():
            raise SceneError(
                f"{frame.normals}: at {size[0]}x{size[1]} its mask is empty or full: give a larger --size, or check "
                "the camera's distortion"
            )
    return normals, masks, K, source_K, warnings


def _write_photographs(
    folder: Path, frames: Sequence[Frame], K: np.ndarray, new_K: np.ndarray, size: tuple[int, int]
) -> None:
    """Photographs of all views, or of none: they are shown, and never learnt from."""
    if any(frame.image is None for frame in frames):
        return
    (folder / IMAGES).mkdir()
    for view, frame in enumerate(frames):
        picture = photograph(frame, K[view], new_K[view], size)
        if picture is not None:
            write_png(folder / IMAGES / f"{frame.name}.png", picture)


def _shortened(warnings: Sequence[str]) -> list[str]:
    """Of warnings that say the same of several files, the first, and how many more there are."""
    first: dict[str, str] = {}
    count: Counter[str] = Counter()
    for line in warnings:
        kind = "".join(letter for letter in line.split(": ", 1)[-1] if letter.isalpha())
        first.setdefault(kind, line)
        count[kind] += 1
    return [line + (f" (and {count[kind] - 1} more such)" if count[kind] > 1 else "") for kind, line in first.items()]

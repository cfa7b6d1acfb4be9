# SPDX-License-Identifier: Apache-2.0
"""The scene folder: the one module that knows its layout. Everything is read and checked before anything trains.

    SCENE/
      mask/NN.png                    white on the object
      normal_camera_space*/NN.exr    .exr, .png or .npy; x right, y up, z towards the viewer
      normal_world_space*/NN.exr     the same in the world's axes; needs poses
      cameras_sphere.npz             world_mat_i, scale_mat_i (see cameras.py), i counting the views in order, or
      intrinsics.json                fl_x fl_y cx cy w h: captures without poses
      integration/depth/NN.npy       optional: z depth, up to one scale a view
      integration/perspective/NN.npy optional, for other tools: the same as distance along the ray
      image/NN.*                     optional: photographs
      mesh_Gt.ply                    optional: the true surface, in the world

NN is any name; views go in natural order (2 before 10). This is the layout in which SuperNormal (Cao and Taketomi,
CVPR 2024) and PMNI (CVPR 2025) give out DiLiGenT-MV.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.axes_check import AxesEvidence, camera_from_stored, judge_axes, weigh_axes
from pmni_nerfstudio.data.camera_files import (
    check_pinholes,
    read_cameras,
    read_intrinsics,
    warn_outside_sphere,
    warn_small_or_same,
    write_cameras,
    write_intrinsics,
)
from pmni_nerfstudio.data.files import entries
from pmni_nerfstudio.data.images import (
    DEPTH_SUFFIXES,
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    NORMAL_SUFFIXES,
    open_npy,
    read_mask,
    read_normals,
    write_exr,
    write_png,
)
from pmni_nerfstudio.data.listing import files_in_order, list_files, natural_key
from pmni_nerfstudio.data.map_checks import check_mask, check_size, clean_normals, warn_of_copies, warn_of_masks
from pmni_nerfstudio.data.resample import resample_intrinsics, resample_normals, resampled_size
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.transforms import flip_y_and_z

if TYPE_CHECKING:
    import trimesh

T = TypeVar("T")

MASKS = "mask"
CAMERA_SPACE = "normal_camera_space"
WORLD_SPACE = "normal_world_space"
TRUE_NORMALS = "normal_camera_space_GT"
DEPTHS = "integration/depth"
RAY_DEPTHS = "integration/perspective"
IMAGES = "image"
CAMERAS = "cameras_sphere.npz"
INTRINSICS = "intrinsics.json"
MESH = "mesh_Gt.ply"


@dataclass(frozen=True, eq=False)
class Scene:
    """A scene in memory, checked. Nobody changes it: copies are itself, and so nerfstudio may deep-copy it freely."""

    root: Path
    """The scene's folder."""
    names: tuple[str, ...]
    """Of the N views, as their files are called, in natural order."""
    width: int
    """Of all maps, in pixels, after resampling."""
    height: int
    """Of all maps, in pixels, after resampling."""
    K: np.ndarray
    """Intrinsics (N, 3, 3) float64 in pixels, pixel centres at integers."""
    c2w: np.ndarray | None
    """Poses (N, 4, 4) float64, camera to unit-sphere world, OpenCV axes; None if the folder has no cameras."""
    world_from_unit: np.ndarray
    """Similarity (4, 4) float64 from the unit sphere to the data's world; the identity without cameras."""
    masks: np.ndarray
    """(N, H, W) bool, true on the object."""
    normals: np.ndarray
    """(N, H, W, 3) float16, OpenCV camera axes (x right, y down, z forward), unit on the mask and zero off it."""
    normal_files: tuple[Path, ...]
    """Of the views, in order."""
    mask_files: tuple[Path, ...]
    """Of the views, in order."""
    depth_files: tuple[Path, ...] | None
    """Of the views, in order, at the maps' size before resampling; None if there are none."""
    image_files: tuple[Path, ...] | None
    """Of the views, in order; None if there are none."""
    mesh_file: Path | None
    """The true surface in the data's world, if it is known."""
    warnings: tuple[str, ...]
    """One line each, for the caller to show."""

    @property
    def num_views(self) -> int:
        """N."""
        return len(self.names)

    def __deepcopy__(self, memo: dict) -> Scene:
        return self


def read_scene(root: str | os.PathLike[str], normals_folder: str | None = None, scale_factor: float = 1.0) -> Scene:
    """Read a scene folder and check all of it.

    Args:
        root: the folder.
        normals_folder: name of the folder with the normal maps. Without it: normal_camera_space_GT, else
            normal_camera_space, else the only normal_camera_space* or normal_world_space* folder there is.
        scale_factor: on the size of the maps; .5 halves both sides. Intrinsics follow.

    Raises:
        SceneError: one line with the file, what is wrong, and what to do.
    """
    root = Path(root)
    if not root.is_dir():
        raise SceneError(f"{root}: {'is no folder' if root.exists() else 'does not exist'}: give a scene's folder")
    folder = root / _choose_normals(root, normals_folder)
    masks_by_name = list_files(root / MASKS, MASK_SUFFIXES)
    normals_by_name = list_files(folder, NORMAL_SUFFIXES)
    names = sorted(masks_by_name.keys() | normals_by_name.keys(), key=natural_key)
    mask_files = files_in_order(names, masks_by_name, root / MASKS, folder)
    normal_files = files_in_order(names, normals_by_name, folder, root / MASKS)
    if len(names) < 2:
        raise SceneError(f"{root}: has only the view {names[0]}: at least 2 are needed")

    masks = _read_masks(mask_files)
    mask_warnings = warn_of_masks(mask_files, masks)
    height, width = masks.shape[1:]
    K, c2w, world_from_unit, warnings = _read_cameras(root, masks)
    depth_files = _find_depths(root, names, masks.shape[1:], mask_files[0])
    image_files, image_warnings = _find_images(root, names)

    is_world_space = folder.name.startswith(WORLD_SPACE)
    if is_world_space and c2w is None:
        raise SceneError(f"{folder}: world-space normals need poses: add {root / CAMERAS} or camera-space normals")
    spaces = camera_from_stored(len(names), c2w, world_from_unit, is_world_space)
    try:
        size = resampled_size(width, height, scale_factor)
    except ValueError as error:
        raise SceneError(f"{root}: scale_factor {error}") from error
    K = resample_intrinsics(K, (width, height), size)
    normals, masks, normal_warnings = _read_normals(folder, normal_files, masks, K, spaces, size)
    if c2w is None:  # with poses, copies show by their cameras; a symmetric object has equal views from two
        normal_warnings += warn_of_copies(normal_files, normals)
    mesh_file = root / MESH
    return Scene(
        root=root,
        names=tuple(names),
        width=size[0],
        height=size[1],
        K=K,
        c2w=c2w,
        world_from_unit=world_from_unit,
        masks=masks,
        normals=normals,
        normal_files=normal_files,
        mask_files=mask_files,
        depth_files=depth_files,
        image_files=image_files,
        mesh_file=mesh_file if mesh_file.is_file() else None,
        warnings=(*mask_warnings, *warnings, *image_warnings, *normal_warnings),
    )


def write_scene(
    root: str | os.PathLike[str],
    *,
    names: Sequence[str],
    K: np.ndarray,
    c2w: np.ndarray | None,
    world_from_unit: np.ndarray,
    masks: np.ndarray,
    normals: np.ndarray,
    mesh: trimesh.Trimesh | None = None,
    depths: np.ndarray | None = None,
) -> None:
    """Write a scene folder that `read_scene` reads, each file atomically.

    Args:
        root: the folder; made if need be. Files of these views that are there are replaced.
        names: of the N views, in natural order.
        K: (N, 3, 3), pixels, pixel centres at integers; all the same where there are no poses.
        c2w: (N, 4, 4), camera to unit-sphere world, OpenCV axes; None writes intrinsics.json instead.
        world_from_unit: (4, 4), similarity.
        masks: (N, H, W) bool.
        normals: (N, H, W, 3), OpenCV camera axes, unit on the mask.
        mesh: the true surface, in the data's world.
        depths: (N, H, W), z depth, zero or NaN where unknown.

    Raises:
        SceneError: the folder holds files of another scene, which would mix with these.
        ValueError: the arrays don't fit each other, or `names` are not in natural order.
    """
    root, count = Path(root), len(names)
    height, width = masks.shape[1:]
    if list(names) != sorted(set(names), key=natural_key):
        raise ValueError("names: have to be different and in natural order, since the cameras are numbered by it")
    for label, array, shape in (
        ("K", K, (count, 3, 3)),
        ("c2w", c2w, (count, 4, 4)),
        ("masks", masks, (count, height, width)),
        ("normals", normals, (count, height, width, 3)),
        ("depths", depths, (count, height, width)),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(f"{label}: shape {array.shape} is not {shape}")
    if c2w is None and not np.allclose(K, K[0]):
        raise ValueError("K: without poses, all views share their intrinsics")

    mask_files = [root / MASKS / f"{name}.png" for name in names]
    normal_files = [root / TRUE_NORMALS / f"{name}.exr" for name in names]
    depth_files = [root / DEPTHS / f"{name}.npy" for name in names] if depths is not None else []
    camera_file = root / (CAMERAS if c2w is not None else INTRINSICS)
    mesh_files = [root / MESH] if mesh is not None else []
    _refuse_others(root, {*mask_files, *normal_files, *depth_files, camera_file, *mesh_files})
    for file in (mask_files[0], normal_files[0], *depth_files[:1]):
        file.parent.mkdir(parents=True, exist_ok=True)
    for view in range(count):
        write_png(mask_files[view], masks[view].astype(bool))
        stored = flip_y_and_z(normals[view])
        write_exr(normal_files[view], np.where(masks[view][..., None], stored, 0))
    if depths is not None:
        for file, depth in zip(depth_files, depths):
            with atomic_path(file) as temporary:
                np.save(temporary, depth.astype(np.float32))
    if c2w is not None:
        write_cameras(camera_file, K, c2w, world_from_unit)
    else:
        write_intrinsics(camera_file, K[0], width, height)
    if mesh is not None:
        with atomic_path(root / MESH) as temporary:
            mesh.export(temporary)


def _choose_normals(root: Path, choice: str | None) -> str:
    found = sorted(
        path.name for path in entries(root) if path.is_dir() and path.name.startswith((CAMERA_SPACE, WORLD_SPACE))
    )
    listed = ", ".join(found) or "none"
    if choice is not None:
        if choice not in found:
            raise SceneError(f"{root}: has no folder {choice} of normals: choose one of those there are ({listed})")
        return choice
    if not found:
        raise SceneError(f"{root}: has no folder of normals: put them into {TRUE_NORMALS} or {WORLD_SPACE}_NAME")
    for name in (TRUE_NORMALS, CAMERA_SPACE):
        if name in found:
            return name
    if len(found) > 1:
        raise SceneError(f"{root}: has several folders of normals ({listed}): choose one with --normals-folder")
    return found[0]


def _read_masks(files: Sequence[Path]) -> np.ndarray:
    first = read_mask(files[0])
    masks = np.empty((len(files), *first.shape), dtype=bool)

    def read(view: int) -> None:
        mask = read_mask(files[view])
        check_size(files[view], mask.shape, first.shape, files[0])
        check_mask(files[view], mask)
        masks[view] = mask

    _for_each(read, len(files))
    return masks


def _read_cameras(root: Path, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, list[str]]:
    """K, c2w or None, world_from_unit, warnings."""
    count, height, width = masks.shape
    cameras, intrinsics = root / CAMERAS, root / INTRINSICS
    if os.path.lexists(cameras):
        K, c2w, world_from_unit = read_cameras(cameras, count)
        warnings = check_pinholes(cameras, K, width, height) + warn_small_or_same(cameras, K, c2w, masks)
        return K, c2w, world_from_unit, warnings + warn_outside_sphere(cameras, K, c2w, masks)
    if not os.path.lexists(intrinsics):
        raise SceneError(f"{root}: has neither {CAMERAS} nor {INTRINSICS}: add one, the second if poses are unknown")
    k, file_width, file_height = read_intrinsics(intrinsics)
    if (file_width, file_height) != (width, height):
        raise SceneError(
            f"{intrinsics}: is for {file_width}x{file_height} pixels, but the maps are {width}x{height}: "
            "scale the intrinsics to the maps"
        )
    K = np.repeat(k[None], count, axis=0)
    return K, None, np.eye(4), check_pinholes(intrinsics, k[None], width, height)


def _read_normals(
    folder: Path,
    files: Sequence[Path],
    masks: np.ndarray,
    K: np.ndarray,
    spaces: Sequence[np.ndarray],
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Normals (N, H', W', 3) float16, masks (N, H', W'), warnings; K is that of the new size (width, height).

    Spaces: rotations (N, 3, 3) from the stored axes to the cameras', and, with poses, those of the other space.
    """
    count, height, width = masks.shape
    # Filled view by view, so that float32 is never held for more views than are decoded at once.
    normals = np.empty((count, size[1], size[0], 3), dtype=np.float16)
    new_masks = np.empty((count, size[1], size[0]), dtype=bool)

    def read(view: int) -> tuple[list[str], list[AxesEvidence]]:
        stored = read_normals(files[view])
        check_size(files[view], stored.shape, (height, width), folder.parent / MASKS)
        maps, mask, warnings = clean_normals(files[view], stored, masks[view])
        maps = maps @ spaces[0][view].T.astype(np.float32)
        if size != (width, height):
            maps, mask = resample_normals(maps, mask, size)
            if not mask.any() or mask.all():
                raise SceneError(f"{files[view]}: at {size[0]}x{size[1]} its mask is empty or full: raise scale_factor")
        normals[view], new_masks[view] = maps, mask
        evidence = [weigh_axes(maps, mask, K[view], spaces[0][view])]
        for space in spaces[1:]:
            turn = (space[view] @ spaces[0][view].T).astype(np.float32)
            evidence.append(
                evidence[0] if evidence[0].is_good else weigh_axes(maps @ turn.T, mask, K[view], space[view])
            )
        return warnings, evidence

    views = _for_each(read, count)
    warnings = [line for lines, _ in views for line in lines]
    own, *other = zip(*(evidence for _, evidence in views))
    warnings += judge_axes(folder, files, own, folder.name.startswith(WORLD_SPACE), *other)
    return normals, new_masks, warnings


def _find_depths(root: Path, names: Sequence[str], shape: tuple[int, ...], reference: Path) -> tuple[Path, ...] | None:
    folder = root / DEPTHS
    if not folder.is_dir():
        return None
    by_name = list_files(folder, DEPTH_SUFFIXES)
    files = files_in_order(names, by_name, folder, root / MASKS)
    if len(by_name) != len(names):
        extra = next(name for name in by_name if name not in names)
        raise SceneError(f"{by_name[extra]}: belongs to no view: remove it")
    for file in files:
        depth = open_npy(file)
        if depth.ndim != 2:
            raise SceneError(f"{file}: holds an array of shape {depth.shape}: save depths as (height, width)")
        check_size(file, depth.shape, shape, reference)
    return files


def _find_images(root: Path, names: Sequence[str]) -> tuple[tuple[Path, ...] | None, list[str]]:
    """Photographs are shown and never learnt from: what is amiss with them is no error."""
    folder = root / IMAGES
    if not folder.is_dir():
        return None, []
    files = {path.stem: path for path in entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES}
    missing = [name for name in names if name not in files]
    if missing:
        return None, [f"{folder}: has no image of {len(missing)} views (first {missing[0]}): its images are not used"]
    return tuple(files[name] for name in names), []


def _refuse_others(root: Path, planned: set[Path]) -> None:
    folders = [
        root / MASKS,
        root / DEPTHS,
        root / IMAGES,
        *root.glob(f"{CAMERA_SPACE}*"),
        *root.glob(f"{WORLD_SPACE}*"),
    ]
    present = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    present += [path for path in (root / CAMERAS, root / INTRINSICS, root / MESH) if path.is_file()]
    for path in present:
        if path not in planned:
            raise SceneError(f"{path}: is of another scene: remove {root} first, or write to another folder")


def _for_each(work: Callable[[int], T], count: int) -> list[T]:
    """Results of work(0), ..., work(count - 1) in order, two at a time: more would hold more decoded maps at once."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(work, range(count)))


def is_scene(folder: Path) -> bool:
    """Whether a folder has the layout that is read as it is: SuperNormal's, PMNI's and ours."""
    normals = [path for space in (CAMERA_SPACE, WORLD_SPACE) for path in folder.glob(f"{space}*") if path.is_dir()]
    cameras = (folder / CAMERAS).is_file() or (folder / INTRINSICS).is_file()
    return (folder / MASKS).is_dir() and bool(normals) and cameras

# SPDX-License-Identifier: Apache-2.0
"""Reading and checking of scene folders.

The layout is that in which SuperNormal (Cao and Taketomi, CVPR 2024) and PMNI (CVPR 2025) release DiLiGenT-MV:

    SCENE/
      mask/NN.png                    white on the object: its silhouette
      mask_valid/NN.png              optional: white where normals count (see map_checks.clean_normals)
      mask_unknown/NN.png            optional: white where something else stands in front, or may
      normal_camera_space*/NN.exr    .exr, .png or .npy; x right, y up, z towards the viewer
      normal_world_space*/NN.exr     normals in world axes; needs poses
      cameras_sphere.npz             world_mat_i, scale_mat_i of view i (see camera_files.py), or
      intrinsics.json                fl_x fl_y cx cy w h, for captures without poses
      integration/depth/NN.npy       optional: integrated depth maps, z depth with one scale per view
      integration/perspective/NN.npy optional, for other tools: distances along the ray
      image/NN.*                     optional: photographs
      mesh_Gt.ply                    optional: ground-truth surface in the data world

NN is the name of a view; views are in natural order (2 before 10). With poses, views may differ in size; all files of one
view have the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data import images
from pmni_nerfstudio.data.axes_check import AxisEvidence, camera_from_stored, check_axes, sample_axes
from pmni_nerfstudio.data.close_ups import find_close_ups, is_cut, unknown_pixels
from pmni_nerfstudio.data.files import entries
from pmni_nerfstudio.data.listing import files_in_order, list_files, natural_key
from pmni_nerfstudio.data.map_checks import (
    check_mask,
    check_size,
    clean_normals,
    warn_of_copies,
    warn_of_holes,
    warn_of_masks,
)
from pmni_nerfstudio.data.mask_maps import for_each_view, read_masks, read_unknown
from pmni_nerfstudio.data.normals_folder import choose_normals_folder, warn_of_lossy
from pmni_nerfstudio.data.observations import Observations
from pmni_nerfstudio.data.packed_masks import Masks
from pmni_nerfstudio.data.reduction import Reduction, reduced_shape
from pmni_nerfstudio.data.resample import resample_intrinsics, resample_normals, resampled_size
from pmni_nerfstudio.data.scene_cameras import CAMERAS, INTRINSICS, read_scene_cameras
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.cameras import strided_intrinsics
from pmni_nerfstudio.geometry.normals import has_normal, rotate_in_place

MASKS = "mask"
VALID = "mask_valid"
UNKNOWN = "mask_unknown"
CAMERA_SPACE = "normal_camera_space"
WORLD_SPACE = "normal_world_space"
TRUE_NORMALS = "normal_camera_space_GT"
DEPTHS = "integration/depth"
RAY_DEPTHS = "integration/perspective"
IMAGES = "image"
MESH = "mesh_Gt.ply"


@dataclass(frozen=True, eq=False)
class MapFacts:
    """Figures of the maps of N views, after resampling and before their reduction."""

    sizes: np.ndarray
    """(N, 2) width and height."""
    areas: np.ndarray
    """(N,) pixels of the mask."""
    missing: np.ndarray
    """(N,) pixels of the mask without a normal."""
    facing: np.ndarray
    """(N,) share of the normals that face the camera."""
    rim: np.ndarray
    """(N,) agreement of the normals at the contour with its outward direction, -1 to 1; 0 without evidence."""


@dataclass(frozen=True, eq=False)
class Scene(Observations):
    """A checked scene in memory: N views in natural order, after resampling; normals are float16, or float32 where
    they were averaged.

    Instances are immutable, and a deep copy is the instance itself.
    """

    root: Path
    """Folder of the scene."""
    c2w: np.ndarray | None
    """Poses (N, 4, 4) float64, camera to unit-sphere world, OpenCV axes; None if the folder has no cameras."""
    world_from_unit: np.ndarray
    """Similarity (4, 4) float64 from the unit-sphere world to the data world; the identity without cameras."""
    normal_files: tuple[Path, ...]
    """Normal map of each view."""
    mask_files: tuple[Path, ...]
    """Mask of each view."""
    depth_files: tuple[Path, ...] | None
    """Integrated depth map of each view, at the size before resampling; None if the scene has none."""
    image_files: tuple[Path, ...] | None
    """Photograph of each view; None if the scene has none."""
    mesh_file: Path | None
    """Ground-truth surface in the data world; None if the scene has none."""
    warnings: tuple[str, ...]
    """Warnings of one line each, to be shown by the caller."""
    facts: MapFacts
    """Figures of the maps before their reduction."""
    step: int = 1
    """Factor by which the maps were reduced while they were read; K belongs to the reduced maps."""

    @property
    def full_K(self) -> np.ndarray:
        """Intrinsics (N, 3, 3) of the maps before their reduction."""
        return strided_intrinsics(self.K, 1 / self.step)

    def __deepcopy__(self, memo: dict) -> Scene:
        return self


def read_scene(
    root: str | os.PathLike[str],
    normals_folder: str | None = None,
    scale_factor: float = 1.0,
    with_depths: bool = True,
    reduce: Callable[[int, int], Reduction] | None = None,
) -> Scene:
    """Read and check a scene folder.

    Args:
        root: folder of the scene.
        normals_folder: name of the folder with the normal maps. Default: the only normal_camera_space* or
            normal_world_space* folder of estimates, or of the ground truth if there are no estimates; see
            `choose_normals_folder`.
        scale_factor: factor on the size of the maps: 0.5 halves both sides. Intrinsics are scaled accordingly.
        with_depths: whether to check the integrated depth maps; otherwise the scene is read as if it had none.
        reduce: gives the reduction of the maps for their height and width. The checks see the maps at full size; only the
            reduced ones are kept, so that memory hardly grows with the number of views.

    Raises:
        SceneError: a file is missing or invalid, or files contradict each other.
    """
    root = Path(root)
    if not root.is_dir():
        raise SceneError(
            f"{root}: {'is not a folder' if root.exists() else 'does not exist'}; give the folder of a scene"
        )
    folder_name, folder_warnings = _choose_normals(root, normals_folder)
    folder, is_world_space = root / folder_name, folder_name.startswith(WORLD_SPACE)
    masks_by_name = list_files(root / MASKS, images.MASK_SUFFIXES, images.OTHER_MASK_SUFFIXES)
    normals_by_name = list_files(folder, images.NORMAL_SUFFIXES, images.OTHER_NORMAL_SUFFIXES)
    names = sorted(masks_by_name.keys() | normals_by_name.keys(), key=natural_key)
    mask_files = files_in_order(names, masks_by_name, root / MASKS, folder)
    normal_files = files_in_order(names, normals_by_name, folder, root / MASKS)
    if len(names) < 2:
        raise SceneError(f"{root}: has only one view, {names[0]}; at least 2 are needed")

    masks, sizes = read_masks(mask_files, normal_files, are_packed=reduce is not None)
    file_sizes = np.tile(masks.shape[:0:-1], (len(masks), 1)) if sizes is None else sizes
    frames = masks if sizes is None else [mask[:h, :w] for mask, (w, h) in zip(masks, sizes)]
    K, c2w, world_from_unit, warnings = read_scene_cameras(root, names, masks, sizes, normal_files, is_world_space)
    close_ups = find_close_ups(np.array([is_cut(mask) for mask in frames]), K, c2w)
    for file, mask, is_close_up in zip(mask_files, frames, close_ups):
        check_mask(file, mask, bool(is_close_up))
    whole = np.flatnonzero(~close_ups)
    whole_frames = [frames[i] for i in whole] if close_ups.any() else frames
    mask_warnings = warn_of_masks([mask_files[i] for i in whole], whole_frames)
    depth_files = _find_depths(root, names, file_sizes, mask_files) if with_depths else None
    image_files, image_warnings = _find_images(root, names)

    if is_world_space and c2w is None:
        raise SceneError(f"{folder}: world-space normals need poses; add {root / CAMERAS} or camera-space normals")
    spaces = camera_from_stored(len(names), c2w, world_from_unit, is_world_space)
    try:
        new_sizes = np.array([resampled_size(int(w), int(h), scale_factor) for w, h in file_sizes])
    except ValueError as error:
        raise SceneError(f"{root}: scale_factor {error}") from error
    if sizes is None:
        K = resample_intrinsics(K, tuple(file_sizes[0]), tuple(new_sizes[0]))
    else:
        K = np.stack([resample_intrinsics(*of_view) for of_view in zip(K, file_sizes, new_sizes)])
    valid_files = None
    if (root / VALID).is_dir():
        valid_files = files_in_order(names, list_files(root / VALID, images.MASK_SUFFIXES), root / VALID, root / MASKS)
    # Views of different size are reduced by different factors, so that their maps are kept as they are.
    reduction = Reduction(1) if reduce is None or sizes is not None else reduce(*new_sizes[0, ::-1].tolist())
    given = None
    if (root / UNKNOWN).is_dir():
        unknown_files = files_in_order(
            names, list_files(root / UNKNOWN, images.MASK_SUFFIXES), root / UNKNOWN, root / MASKS
        )
        given = read_unknown(unknown_files, file_sizes, mask_files, new_sizes, reduction.step)
    normals, masks, facts, normal_warnings = _read_normals(
        folder, normal_files, valid_files, frames, close_ups, K, spaces, new_sizes, reduction
    )
    unknown = unknown_pixels(masks, None if sizes is None else new_sizes, close_ups)
    if given is not None:
        given &= ~masks
        unknown = given if unknown is None else given | unknown
    if c2w is None:  # with poses, identical cameras reveal copies; a symmetric object may have equal views
        normal_warnings += warn_of_copies(normal_files, normals)
    mesh_file = root / MESH
    return Scene(
        root=root,
        names=tuple(names),
        K=strided_intrinsics(K, reduction.step),
        c2w=c2w,
        world_from_unit=world_from_unit,
        masks=masks,
        unknown=unknown if unknown is not None and unknown.any() else None,
        sizes=None if sizes is None else new_sizes,
        normals=normals,
        normal_files=normal_files,
        mask_files=mask_files,
        depth_files=depth_files,
        image_files=image_files,
        mesh_file=mesh_file if mesh_file.is_file() else None,
        warnings=(*folder_warnings, *mask_warnings, *warnings, *image_warnings, *normal_warnings),
        facts=facts,
        step=reduction.step,
    )


def _choose_normals(root: Path, choice: str | None) -> tuple[str, list[str]]:
    """Name of the folder of normal maps, and a warning if others lie beside it."""
    found = sorted(
        path.name for path in entries(root) if path.is_dir() and path.name.startswith((CAMERA_SPACE, WORLD_SPACE))
    )
    if choice is not None:
        if choice not in found:
            listed = ", ".join(found) or "none"
            raise SceneError(f"{root}: has no folder {choice} of normals; choose an existing one ({listed})")
        return choice, []
    if not found:
        raise SceneError(f"{root}: has no folder of normals; add {TRUE_NORMALS} or {WORLD_SPACE}_NAME")
    return choose_normals_folder(root, found)


def default_normals_folder(root: Path) -> str | None:
    """Name of the folder of normal maps that `read_scene` reads unless told otherwise; None if it would raise an error."""
    try:
        return _choose_normals(root, None)[0]
    except SceneError:
        return None


def _read_normals(
    folder: Path,
    files: Sequence[Path],
    valid_files: Sequence[Path] | None,
    masks: Sequence[np.ndarray] | Masks,
    close_ups: np.ndarray,
    K: np.ndarray,
    spaces: Sequence[np.ndarray],
    sizes: np.ndarray,
    reduction: Reduction,
) -> tuple[np.ndarray, np.ndarray, MapFacts, list[str]]:
    """Read, check, resample and reduce normal maps.

    Args:
        folder: folder of the normal maps.
        files: normal map of each view.
        valid_files: image of each view that tells where normals count; None: everywhere.
        masks: mask (H, W) of each view, without padding.
        close_ups: (N,), views whose mask may be full.
        K: (N, 3, 3) intrinsics at the new size.
        spaces: rotations (N, 3, 3) from stored to OpenCV camera axes, and, with poses, those for the other space.
        sizes: (N, 2) new width and height of each view.
        reduction: reduction of the maps after their checks.

    Returns:
        Normals (N, H', W', 3), float16 unless they were averaged, masks (N, H', W'), figures of the maps at the new size,
        and warnings. Smaller views are padded with zeros.
    """
    count, largest = len(masks), sizes.max(axis=0)
    allocate = np.empty if (sizes == largest).all() else np.zeros
    # Filled view by view: only the views being decoded are held in float32.
    shape = (count, *reduced_shape(largest, reduction.step))
    normals = allocate((*shape, 3), dtype=np.float32 if reduction.averages else np.float16)
    new_masks = allocate(shape, dtype=bool)
    areas, missing = np.empty(count, dtype=int), np.empty(count, dtype=int)

    def read(view: int) -> tuple[list[str], list[AxisEvidence]]:
        stored, size = images.read_normals(files[view]), (int(sizes[view, 0]), int(sizes[view, 1]))
        own_mask = masks[view]
        height, width = own_mask.shape
        check_size(files[view], stored.shape, (height, width), folder.parent / MASKS)
        measured = None
        if valid_files is not None:
            measured = images.read_mask(valid_files[view])
            check_size(valid_files[view], measured.shape, (height, width), folder.parent / MASKS)
        maps, mask, warnings = clean_normals(files[view], stored, own_mask, measured)
        del stored
        rotate_in_place(maps, spaces[0][view])
        if size != (width, height):
            maps, mask = resample_normals(maps, mask, size)
            if not maps.any() or (mask.all() and not close_ups[view]):
                raise SceneError(
                    f"{files[view]}: at {size[0]}x{size[1]} its mask is full, or has no normals; use a larger scale_factor"
                )
        reduced, kept = reduction.maps(maps, mask)
        rows, columns = slice(0, kept.shape[0]), slice(0, kept.shape[1])
        normals[view, rows, columns], new_masks[view, rows, columns] = reduced, kept
        areas[view], missing[view] = mask.sum(), (mask & ~has_normal(maps)).sum()
        samples = sample_axes(maps, mask, K[view])
        evidence = [samples.evidence(spaces[0][view])]
        for space in spaces[1:]:
            turn = space[view] @ spaces[0][view].T
            evidence.append(evidence[0] if evidence[0].is_good else samples.evidence(space[view], turn))
        return warnings, evidence

    views = for_each_view(read, count, max(masks[0].size, int(sizes.prod(axis=1).max())))
    warnings = [line for lines, _ in views for line in lines] + warn_of_holes(files, areas, missing)
    own, *other = zip(*(evidence for _, evidence in views))
    warnings += warn_of_lossy(files)
    warnings += check_axes(folder, files, own, folder.name.startswith(WORLD_SPACE), *other)
    facing, rim = (np.array([getattr(cues, name)[0] for cues in own]) for name in ("facing", "rim"))
    return normals, new_masks, MapFacts(sizes, areas, missing, facing, rim), warnings


def _find_depths(
    root: Path, names: Sequence[str], sizes: np.ndarray, references: Sequence[Path]
) -> tuple[Path, ...] | None:
    folder = root / DEPTHS
    if not folder.is_dir():
        return None
    by_name = list_files(folder, images.DEPTH_SUFFIXES)
    files = files_in_order(names, by_name, folder, root / MASKS)
    if len(by_name) != len(names):
        extra = next(name for name in by_name if name not in names)
        raise SceneError(f"{by_name[extra]}: belongs to no view; remove it")
    for file, size, reference in zip(files, sizes, references):
        depth = images.open_npy(file)
        if depth.ndim != 2:
            raise SceneError(f"{file}: contains an array of shape {depth.shape}; save depths as (height, width)")
        check_size(file, depth.shape, tuple(size[::-1]), reference)
    return files


def _find_images(root: Path, names: Sequence[str]) -> tuple[tuple[Path, ...] | None, list[str]]:
    """Find the photographs. They are for display only, so that missing ones cause a warning instead of an error."""
    folder = root / IMAGES
    if not folder.is_dir():
        return None, []
    files = {path.stem: path for path in entries(folder) if path.suffix.lower() in images.IMAGE_SUFFIXES}
    missing = [name for name in names if name not in files]
    if missing:
        return None, [f"{folder}: has no image of {len(missing)} views (first {missing[0]}); its images are not used"]
    return tuple(files[name] for name in names), []


def is_scene(folder: Path) -> bool:
    """Whether a folder has the layout of a scene folder."""
    normals = [path for space in (CAMERA_SPACE, WORLD_SPACE) for path in folder.glob(f"{space}*") if path.is_dir()]
    cameras = (folder / CAMERAS).is_file() or (folder / INTRINSICS).is_file()
    return (folder / MASKS).is_dir() and bool(normals) and cameras

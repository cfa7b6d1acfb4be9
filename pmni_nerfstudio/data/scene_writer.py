# SPDX-License-Identifier: Apache-2.0
"""Writing of scene folders (layout: see scene.py)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pmni_nerfstudio.data import scene
from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.camera_files import write_cameras, write_intrinsics
from pmni_nerfstudio.data.images import write_exr, write_png
from pmni_nerfstudio.data.listing import natural_key
from pmni_nerfstudio.data.result_files import write_mesh
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.normals import has_normal
from pmni_nerfstudio.geometry.transforms import flip_y_and_z

if TYPE_CHECKING:
    import trimesh


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
    normals_folder: str = scene.TRUE_NORMALS,
    unknown: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
) -> None:
    """Write a scene folder, each file atomically.

    Args:
        root: folder of the scene, created if necessary. Existing files of these views are replaced.
        names: names of the N views in natural order.
        K: (N, 3, 3), intrinsics in pixels, pixel centers at integers; equal for all views if there are no poses.
        c2w: (N, 4, 4), camera to unit-sphere world, OpenCV axes. If None, intrinsics.json is written.
        world_from_unit: (4, 4), similarity from the unit-sphere world to the data world.
        masks: (N, H, W) bool.
        normals: (N, H, W, 3), OpenCV camera axes, unit length or, where there is none, zero. If mask pixels of any view
            have none, mask_valid/ is written as well.
        mesh: ground-truth surface in the data world.
        depths: (N, H, W), z depth, zero or NaN where unknown.
        normals_folder: name of the folder of normal maps.
        unknown: (N, H, W) bool, where something else stands in front of the object, or may.
        sizes: (N, 2), width and height of each view, beyond which its maps are padding; None: those of the maps.

    Raises:
        SceneError: the folder contains files of another scene.
        ValueError: shapes do not match, or `names` are not in natural order.
    """
    root, count = Path(root), len(names)
    height, width = masks.shape[1:]
    if list(names) != sorted(set(names), key=natural_key):
        raise ValueError("names: have to be distinct and in natural order, in which cameras are numbered")
    for label, array, shape in (
        ("K", K, (count, 3, 3)),
        ("c2w", c2w, (count, 4, 4)),
        ("masks", masks, (count, height, width)),
        ("normals", normals, (count, height, width, 3)),
        ("unknown", unknown, (count, height, width)),
        ("depths", depths, (count, height, width)),
        ("sizes", sizes, (count, 2)),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(f"{label}: shape {array.shape} is not {shape}")
    if c2w is None and (sizes is not None or not np.allclose(K, K[0])):
        raise ValueError("K: without poses, all views share their intrinsics and size")

    mask_files = [root / scene.MASKS / f"{name}.png" for name in names]
    unknown_files = [root / scene.UNKNOWN / f"{name}.png" for name in names] if unknown is not None else []
    with_holes = any(has_holes(view_normals, mask) for view_normals, mask in zip(normals, masks.astype(bool)))
    valid_files = [root / scene.VALID / f"{name}.png" for name in names] if with_holes else []
    normal_files = [root / normals_folder / f"{name}.exr" for name in names]
    depth_files = [root / scene.DEPTHS / f"{name}.npy" for name in names] if depths is not None else []
    camera_file = root / (scene.CAMERAS if c2w is not None else scene.INTRINSICS)
    mesh_files = [root / scene.MESH] if mesh is not None else []
    _check_other_files(
        root, {*mask_files, *valid_files, *unknown_files, *normal_files, *depth_files, camera_file, *mesh_files}
    )
    for file in (*unknown_files[:1], *depth_files[:1]):
        file.parent.mkdir(parents=True, exist_ok=True)
    holes = []
    for view, name in enumerate(names):
        own_width, own_height = (width, height) if sizes is None else sizes[view]
        frame = slice(0, own_height), slice(0, own_width)
        mask = masks[view][frame].astype(bool)
        stored = np.where(mask[..., None], flip_y_and_z(normals[view][frame]), 0)
        holes.append(write_view(root, name, stored, mask, normals_folder))
        if unknown is not None:
            write_png(unknown_files[view], unknown[view][frame].astype(bool))
        if depths is not None:
            with atomic_path(depth_files[view]) as temporary:
                np.save(temporary, depths[view][frame].astype(np.float32))
    write_whole_masks(root, names, holes)
    write_scene_cameras(root, K, c2w, world_from_unit, (width, height))
    if mesh is not None:
        write_mesh(root / scene.MESH, mesh)


def write_view(
    root: Path, name: str, stored: np.ndarray, mask: np.ndarray, normals_folder: str = scene.TRUE_NORMALS
) -> bool:
    """Write mask and normal map of one view and, if the mask has holes, its image in mask_valid/.

    Args:
        root: folder of the scene; the folders in it are created if necessary.
        name: name of the view.
        stored: (H, W, 3), x right, y up, z towards the viewer; unit length or, where there is none, zero.
        mask: (H, W) bool, true on the object.
        normals_folder: name of the folder of normal maps.

    Returns:
        Whether there are holes. If any view has some, `write_whole_masks` completes the scene.
    """
    images = {scene.MASKS: mask}
    if holes := has_holes(stored, mask):
        images[scene.VALID] = mask & has_normal(stored)
    for folder in (*images, normals_folder):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for folder, pixels in images.items():
        write_png(root / folder / f"{name}.png", pixels)
    write_exr(root / normals_folder / f"{name}.exr", stored)
    return holes


def write_whole_masks(root: Path, names: Sequence[str], holes: Sequence[bool]) -> None:
    """Write the images in mask_valid/ of the views without holes, which are their masks, if any view has holes."""
    for name in (name for name, has in zip(names, holes, strict=True) if any(holes) and not has):
        with atomic_path(root / scene.VALID / f"{name}.png") as temporary:
            shutil.copyfile(root / scene.MASKS / f"{name}.png", temporary)


def write_scene_cameras(
    root: Path, K: np.ndarray, c2w: np.ndarray | None, world_from_unit: np.ndarray, size: tuple[int, int]
) -> None:
    """Write cameras_sphere.npz or, without poses, intrinsics.json for maps of a width and height; see `write_scene`."""
    if c2w is not None:
        write_cameras(root / scene.CAMERAS, K, c2w, world_from_unit)
    else:
        write_intrinsics(root / scene.INTRINSICS, K[0], *size)


def has_holes(normals: np.ndarray, mask: np.ndarray) -> bool:
    """Whether pixels of a mask (H, W) have no normal (H, W, 3)."""
    return bool((mask & ~has_normal(normals)).any())


def _check_other_files(root: Path, planned: set[Path]) -> None:
    """Raise SceneError if a scene folder contains other files than the planned ones."""
    folders = [
        root / scene.MASKS,
        root / scene.VALID,
        root / scene.UNKNOWN,
        root / scene.DEPTHS,
        root / scene.IMAGES,
        *root.glob(f"{scene.CAMERA_SPACE}*"),
        *root.glob(f"{scene.WORLD_SPACE}*"),
    ]
    present = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    present += [path for path in (root / scene.CAMERAS, root / scene.INTRINSICS, root / scene.MESH) if path.is_file()]
    for path in present:
        if path not in planned:
            raise SceneError(f"{path}: belongs to another scene; remove {root} first, or write to another folder")

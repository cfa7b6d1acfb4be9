# SPDX-License-Identifier: Apache-2.0
"""Writing of scene folders (layout: see scene.py)."""

from __future__ import annotations

import os
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
    valid = masks.astype(bool) & normals.any(axis=-1)
    valid_files = [root / scene.VALID / f"{name}.png" for name in names] if (valid != masks).any() else []
    normal_files = [root / normals_folder / f"{name}.exr" for name in names]
    depth_files = [root / scene.DEPTHS / f"{name}.npy" for name in names] if depths is not None else []
    camera_file = root / (scene.CAMERAS if c2w is not None else scene.INTRINSICS)
    mesh_files = [root / scene.MESH] if mesh is not None else []
    _check_other_files(
        root, {*mask_files, *valid_files, *unknown_files, *normal_files, *depth_files, camera_file, *mesh_files}
    )
    for file in (mask_files[0], normal_files[0], *valid_files[:1], *unknown_files[:1], *depth_files[:1]):
        file.parent.mkdir(parents=True, exist_ok=True)
    for view in range(count):
        own_width, own_height = (width, height) if sizes is None else sizes[view]
        frame = slice(0, own_height), slice(0, own_width)
        write_png(mask_files[view], masks[view][frame].astype(bool))
        stored = flip_y_and_z(normals[view][frame])
        write_exr(normal_files[view], np.where(masks[view][frame][..., None], stored, 0))
        for files, pixels in ((valid_files, valid), (unknown_files, unknown)):
            if files and pixels is not None:
                write_png(files[view], pixels[view][frame].astype(bool))
        if depths is not None:
            with atomic_path(depth_files[view]) as temporary:
                np.save(temporary, depths[view][frame].astype(np.float32))
    if c2w is not None:
        write_cameras(camera_file, K, c2w, world_from_unit)
    else:
        write_intrinsics(camera_file, K[0], width, height)
    if mesh is not None:
        write_mesh(root / scene.MESH, mesh)


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

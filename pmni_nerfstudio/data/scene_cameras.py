# SPDX-License-Identifier: Apache-2.0
"""Cameras of a scene folder, assigned to its views."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data import camera_files
from pmni_nerfstudio.data.camera_order import candidate_orders, choose_order
from pmni_nerfstudio.data.cropped_frames import whole_frames
from pmni_nerfstudio.data.images import read_normals
from pmni_nerfstudio.data.packed_masks import Masks
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.cameras import strided_intrinsics
from pmni_nerfstudio.geometry.silhouette_coherence import Fit, evenly_spaced, measure_fit
from pmni_nerfstudio.geometry.transforms import flip_y_and_z, scale_of

CAMERAS = "cameras_sphere.npz"
INTRINSICS = "intrinsics.json"
_MAX_SIDE = 320
"""Maps with longer sides are subsampled where orders of cameras are compared."""


def read_scene_cameras(
    root: Path,
    names: Sequence[str],
    masks: Masks,
    sizes: np.ndarray | None,
    normal_files: Sequence[Path],
    is_world_space: bool,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, list[str]]:
    """Read and check the cameras of a scene folder.

    Args:
        root: folder of the scene.
        names: names of the N views in natural order.
        masks: (N, H, W), true on the object.
        sizes: width and height (N, 2) of the views, if they differ; they need poses.
        normal_files: normal map of each view, read only where the order of the cameras is open.
        is_world_space: whether these hold normals in world axes.

    Returns:
        K (N, 3, 3), c2w (N, 4, 4) in the unit-sphere world (None without poses), world_from_unit (4, 4), and warnings.

    Raises:
        SceneError: there are no cameras, or they are broken.
    """
    count, height, width = masks.shape
    cameras, intrinsics = root / CAMERAS, root / INTRINSICS
    if os.path.lexists(cameras):
        K, c2w, world_from_unit = camera_files.read_cameras(cameras, count, masks)
        whole_K, whole_sizes = whole_frames(root, K, sizes)
        warnings = camera_files.check_pinholes(cameras, whole_K, width, height, whole_sizes)
        natural = tuple(range(count))
        order_warnings: list[str] = []
        candidates = sorted(candidate_orders(names, natural), key=lambda order: order.cameras != natural)
        if len(candidates) > 1:
            # Rotations between worlds do not matter: world-space normals are compared in the data world.
            maps = _OrderMaps(masks, normal_files, is_world_space, world_from_unit)
            order, order_warnings = choose_order(
                cameras, candidates, lambda order: maps.fit(K[list(order)], c2w[list(order)]), has_rule=True
            )
            K, c2w = K[list(order.cameras)], c2w[list(order.cameras)]
        warnings += camera_files.warn_fitted_sphere(cameras, world_from_unit)
        warnings += camera_files.warn_small_or_same(cameras, K, c2w, masks)
        warnings += camera_files.warn_outside_sphere(cameras, K, c2w, masks)
        return K, c2w, world_from_unit, [*warnings, *order_warnings]
    if not os.path.lexists(intrinsics):
        raise SceneError(
            f"{root}: has neither {CAMERAS} nor {INTRINSICS}; add one of them, the second if poses are unknown"
        )
    if sizes is not None:
        other = int((sizes != sizes[0]).any(axis=1).argmax())
        raise SceneError(
            f"{normal_files[other]}: is {sizes[other, 0]}x{sizes[other, 1]} pixels, and {normal_files[0].name} "
            f"{sizes[0, 0]}x{sizes[0, 1]}; without poses ({INTRINSICS}) all maps of a scene need the same size"
        )
    k, file_width, file_height = camera_files.read_intrinsics(intrinsics)
    if (file_width, file_height) != (width, height):
        raise SceneError(
            f"{intrinsics}: is for {file_width}x{file_height} pixels, but the maps are {width}x{height}; "
            "scale the intrinsics to the maps"
        )
    K = np.repeat(k[None], count, axis=0)
    return K, None, np.eye(4), camera_files.check_pinholes(intrinsics, k[None], width, height)


class _OrderMaps:
    """Maps of some views at reduced size, to which orders of cameras are compared."""

    def __init__(
        self, masks: Masks, normal_files: Sequence[Path], is_world_space: bool, world_from_unit: np.ndarray
    ) -> None:
        self._step = max(1, -(-max(masks.shape[1:]) // _MAX_SIDE))
        self._chosen = evenly_spaced(len(masks))
        self._masks = np.stack([masks[view][:: self._step, :: self._step] for view in self._chosen])
        self._normals: list[np.ndarray] = []
        self._world_rotation = world_from_unit[:3, :3] / scale_of(world_from_unit) if is_world_space else None
        for mask, view in zip(self._masks, self._chosen):
            stored = read_normals(normal_files[view])[:: self._step, :: self._step]
            if stored.shape[:2] != mask.shape:  # reported where the maps are read
                self._normals = []
                return
            with np.errstate(all="ignore"):
                length = np.linalg.norm(stored, axis=-1, keepdims=True)
                unit = np.where(mask[..., None] & (length > 0.1) & np.isfinite(length), stored / length, 0)
            self._normals.append(unit)

    def fit(self, K: np.ndarray, c2w: np.ndarray) -> Fit:
        """Agreement of cameras, one for each view of the scene, with the maps."""
        K, c2w = strided_intrinsics(K[self._chosen], self._step), c2w[self._chosen]
        if self._world_rotation is None:
            normals = [flip_y_and_z(stored) for stored in self._normals]
        else:
            normals = [stored @ self._world_rotation @ pose[:3, :3] for stored, pose in zip(self._normals, c2w)]
        return measure_fit(list(self._masks), normals or None, K, c2w)

# SPDX-License-Identifier: Apache-2.0
"""Ground truth of a capture, read from the folder that `pmni synth` wrote or from the scene itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import trimesh

from pmni_nerfstudio.data.camera_files import LARGEST
from pmni_nerfstudio.data.npz import read_npz
from pmni_nerfstudio.data.result_files import read_mesh
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.transforms import scale_of, transform_poses

TRUTH_FILE = "truth.npz"
MESH_FILE = "mesh_Gt.ply"

_ARRAYS = ("c2w", "K", "scale_mat", "depth")
_MAX_BYTES = 1 << 34


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Ground-truth surface and cameras of a capture, in the unit-sphere world."""

    mesh: trimesh.Trimesh
    K: np.ndarray
    """(3, 3) intrinsics of all views, or (N, 3, 3); pixel centers at integers."""
    c2w: np.ndarray
    """(N, 4, 4) poses, OpenCV axes."""
    world_from_unit: np.ndarray
    """(4, 4) similarity to the data's world."""
    masks: np.ndarray
    """(N, H, W) bool, pixels of the object in each view."""

    @property
    def height(self) -> int:
        """Image height in pixels."""
        return self.masks.shape[1]

    @property
    def width(self) -> int:
        """Image width in pixels."""
        return self.masks.shape[2]

    def every(self, step: int) -> GroundTruth:
        """Ground truth at a lower resolution: every step-th pixel along each axis."""
        K = self.K.copy()
        K[..., :2, :] /= step
        return replace(self, K=K, masks=self.masks[:, ::step, ::step])

    @property
    def scale(self) -> float:
        """Units of the data's world per unit-sphere radius."""
        return scale_of(self.world_from_unit)


def read_ground_truth(folder: Path) -> GroundTruth:
    """Read a ground-truth folder: truth.npz (c2w, K, scale_mat, depth) and mesh_Gt.ply in the data's world.

    Raises:
        PmniError: A file is missing or invalid.
    """
    path = folder / TRUTH_FILE
    if not path.is_file():
        raise PmniError(f"{path}: is missing; give the ground-truth folder that `pmni synth` wrote")
    arrays = read_npz(path, _ARRAYS.__contains__, _MAX_BYTES)
    again = "create the scene again with `pmni synth`"
    for name in _ARRAYS:
        if name not in arrays or arrays[name].dtype.kind not in "fiu":
            raise PmniError(f"{path}: has no numeric array {name!r}; {again}")
    c2w, K, world_from_unit = (arrays[name].astype(np.float64) for name in _ARRAYS[:3])
    depth = arrays["depth"]
    count = len(depth) if depth.ndim == 3 and depth.size else 0
    fits = c2w.shape == (count, 4, 4) and K.shape in ((3, 3), (count, 3, 3)) and world_from_unit.shape == (4, 4)
    if not fits or not count:
        shapes = ", ".join(f"{name} {arrays[name].shape}" for name in _ARRAYS)
        raise PmniError(f"{path}: array shapes are inconsistent ({shapes}); {again}")
    if not all((np.abs(array) < LARGEST).all() for array in (c2w, K, world_from_unit)):
        raise PmniError(f"{path}: c2w, K or scale_mat is not finite; {again}")
    for name, matrices in (("c2w", c2w), ("K", K), ("scale_mat", world_from_unit)):
        is_affine = name == "K" or (matrices[..., 3, :] == [0, 0, 0, 1]).all()
        if not is_affine or np.linalg.det(matrices[..., :3, :3]).min() <= 0:
            raise PmniError(f"{path}: {name} is mirrored or singular; {again}")
    mesh = read_mesh(folder / MESH_FILE)
    mesh.apply_transform(np.linalg.inv(world_from_unit))
    return GroundTruth(mesh, K, c2w, world_from_unit, np.isfinite(depth) & (depth > 0))


def ground_truth_folder(scene_root: Path) -> Path | None:
    """Ground-truth folder that `pmni synth` wrote within a scene's folder, or None."""
    return next((folder for folder in (scene_root / "truth", scene_root) if (folder / TRUTH_FILE).is_file()), None)


def find_ground_truth(scene: Scene) -> GroundTruth | None:
    """Ground truth in a scene's folder: that of `pmni synth`, else the scene's mesh_Gt.ply and given cameras, else None.

    Raises:
        PmniError: A file of the ground truth is invalid.
    """
    folder = ground_truth_folder(scene.root)
    if folder is not None:
        return read_ground_truth(folder)
    if scene.mesh_file is None or scene.c2w is None:
        return None
    mesh = read_mesh(scene.mesh_file)
    mesh.apply_transform(np.linalg.inv(scene.world_from_unit))
    return GroundTruth(mesh, scene.K, scene.c2w, scene.world_from_unit, scene.masks)


def given_poses(scene: Scene) -> np.ndarray | None:
    """Poses (N, 4, 4) given with a scene, camera to the data's world, OpenCV axes; None if there are none."""
    return None if scene.c2w is None else transform_poses(scene.world_from_unit, scene.c2w)


def poses_are_given(c2w: np.ndarray, scene: Scene) -> bool:
    """Whether poses (N, 4, 4) in the data's world equal those given with the scene."""
    given = given_poses(scene)
    return given is not None and np.allclose(c2w, given, rtol=1e-4, atol=1e-3)

# SPDX-License-Identifier: Apache-2.0
"""The truth that an evaluation compares with: the folder of `pmni synth`, or what a scene holds."""

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
class Truth:
    """A capture's true surface and cameras, in the unit-sphere world (OpenCV axes)."""

    mesh: trimesh.Trimesh
    K: np.ndarray
    """(3, 3) for all views, or (N, 3, 3); integer pixel centres."""
    c2w: np.ndarray
    """(N, 4, 4)."""
    world_from_unit: np.ndarray
    """(4, 4) similarity to the data's world."""
    masks: np.ndarray
    """(N, H, W) bool: what each camera sees of the object."""

    @property
    def height(self) -> int:
        """Of every view."""
        return self.masks.shape[1]

    @property
    def width(self) -> int:
        """Of every view."""
        return self.masks.shape[2]

    def every(self, step: int) -> Truth:
        """The same, seen by every step-th pixel of each axis."""
        K = self.K.copy()
        K[..., :2, :] /= step
        return replace(self, K=K, masks=self.masks[:, ::step, ::step])

    @property
    def world_mesh(self) -> trimesh.Trimesh:
        """In the data's world."""
        return self.mesh.copy().apply_transform(self.world_from_unit)

    @property
    def unit_from_world(self) -> np.ndarray:
        """(4, 4)."""
        return np.linalg.inv(self.world_from_unit)

    @property
    def scale(self) -> float:
        """Units of the data's world per radius of the unit sphere."""
        return scale_of(self.world_from_unit)


def read_truth(folder: Path) -> Truth:
    """Read a truth folder: truth.npz (c2w, K, scale_mat, depth) and mesh_Gt.ply, the mesh in the data's world.

    Raises:
        PmniError: a file is missing or broken.
    """
    path = folder / TRUTH_FILE
    if not path.is_file():
        raise PmniError(f"{path}: is missing; give the truth folder that `pmni synth` wrote")
    arrays = read_npz(path, _ARRAYS.__contains__, _MAX_BYTES)
    for name in _ARRAYS:
        if name not in arrays or arrays[name].dtype.kind not in "fiu":
            raise PmniError(f"{path}: holds no numbers {name}; write the scene again with `pmni synth`")
    c2w, K, world_from_unit = (arrays[name].astype(np.float64) for name in _ARRAYS[:3])
    depth = arrays["depth"]
    count = len(depth) if depth.ndim == 3 and depth.size else 0
    fits = c2w.shape == (count, 4, 4) and K.shape in ((3, 3), (count, 3, 3)) and world_from_unit.shape == (4, 4)
    if not fits or not count:
        shapes = ", ".join(f"{name} {arrays[name].shape}" for name in _ARRAYS)
        raise PmniError(f"{path}: shapes don't fit each other ({shapes}); write the scene again with `pmni synth`")
    if not all((np.abs(array) < LARGEST).all() for array in (c2w, K, world_from_unit)):
        raise PmniError(f"{path}: c2w, K or scale_mat is not finite; write the scene again with `pmni synth`")
    for name, matrices in (("c2w", c2w), ("K", K), ("scale_mat", world_from_unit)):
        is_affine = name == "K" or (matrices[..., 3, :] == [0, 0, 0, 1]).all()
        if not is_affine or np.linalg.det(matrices[..., :3, :3]).min() <= 0:
            raise PmniError(f"{path}: {name} is mirrored or singular; write the scene again with `pmni synth`")
    mesh = read_mesh(folder / MESH_FILE)
    mesh.apply_transform(np.linalg.inv(world_from_unit))
    return Truth(mesh, K, c2w, world_from_unit, np.isfinite(depth) & (depth > 0))


def truth_folder(scene_root: Path) -> Path | None:
    """Where `pmni synth` kept the truth within a scene's folder, if it did."""
    return next((folder for folder in (scene_root / "truth", scene_root) if (folder / TRUTH_FILE).is_file()), None)


def find_truth(scene: Scene) -> Truth | None:
    """What a scene's folder knows of the truth: what `pmni synth` kept in it, else its own mesh and given cameras.

    Raises:
        PmniError: a file of it is broken.
    """
    folder = truth_folder(scene.root)
    if folder is not None:
        return read_truth(folder)
    if scene.mesh_file is None or scene.c2w is None:
        return None
    mesh = read_mesh(scene.mesh_file)
    mesh.apply_transform(np.linalg.inv(scene.world_from_unit))
    return Truth(mesh, scene.K, scene.c2w, scene.world_from_unit, scene.masks)


def given_poses(scene: Scene) -> np.ndarray | None:
    """A scene's own poses (N, 4, 4), camera to the data's world, OpenCV axes, if it has any."""
    return None if scene.c2w is None else transform_poses(scene.world_from_unit, scene.c2w)


def are_given(c2w: np.ndarray, scene: Scene) -> bool:
    """Whether poses (N, 4, 4) in the data's world are the scene's own, and not found by a method."""
    given = given_poses(scene)
    return given is not None and np.allclose(c2w, given, rtol=1e-4, atol=1e-3)

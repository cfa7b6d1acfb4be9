# SPDX-License-Identifier: Apache-2.0
"""Files that an evaluation reads: the truth folder of `pmni synth`, meshes, poses."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import trimesh

from pmni_nerfstudio.data.cameras import read_cameras
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.metrics import transform_poses

TRUTH_FILE = "truth.npz"
MESH_FILE = "mesh_Gt.ply"


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
    def unit_from_world(self) -> np.ndarray:
        """(4, 4)."""
        return np.linalg.inv(self.world_from_unit)

    @property
    def scale(self) -> float:
        """Units of the data's world per radius of the unit sphere."""
        return float(np.cbrt(np.linalg.det(self.world_from_unit[:3, :3])))


def read_truth(folder: Path) -> Truth:
    """Read a truth folder: truth.npz (c2w, K, scale_mat, depth) and mesh_Gt.ply, the mesh in the data's world.

    Raises:
        PmniError: a file is missing or broken.
    """
    path = folder / TRUTH_FILE
    if not path.is_file():
        raise PmniError(f"{path}: is missing; give the truth folder that `pmni synth` wrote")
    try:
        with np.load(path) as arrays:
            c2w, K, world_from_unit = (np.asarray(arrays[key], dtype=np.float64) for key in ("c2w", "K", "scale_mat"))
            depth = arrays["depth"]
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise PmniError(f"{path}: can't be read ({error}); write the scene again with `pmni synth`") from error
    mesh = read_mesh(folder / MESH_FILE)
    mesh.apply_transform(np.linalg.inv(world_from_unit))
    return Truth(mesh, K, c2w, world_from_unit, np.isfinite(depth) & (depth > 0))


def find_truth(scene: Scene) -> Truth | None:
    """What a scene's folder knows of the truth: what `pmni synth` kept in it, else its own mesh and given cameras.

    Raises:
        PmniError: a file of it is broken.
    """
    for folder in (scene.root / "truth", scene.root):
        if (folder / TRUTH_FILE).is_file():
            return read_truth(folder)
    if scene.mesh_file is None or scene.c2w is None:
        return None
    mesh = read_mesh(scene.mesh_file)
    mesh.apply_transform(np.linalg.inv(scene.world_from_unit))
    return Truth(mesh, scene.K, scene.c2w, scene.world_from_unit, scene.masks)


def read_mesh(path: Path) -> trimesh.Trimesh:
    """Read a triangle mesh of any format that trimesh knows, all parts as one, vertices as they are.

    Raises:
        PmniError: the file is missing, of an unknown format, has no faces, or has coordinates that are not finite.
    """
    if not path.is_file():
        raise PmniError(f"{path}: no such mesh; give the file that `pmni export` wrote")
    try:
        mesh = trimesh.load_mesh(path, process=False)
    except Exception as error:  # trimesh's loaders raise whatever their parsers meet
        raise PmniError(
            f"{path}: can't be read as a mesh ({_first_line(error)}); give .ply, .obj, .stl or .glb"
        ) from error
    if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
        raise PmniError(f"{path}: has no faces; export a triangle mesh")
    if not np.isfinite(mesh.vertices).all():
        raise PmniError(f"{path}: has vertices that are not finite; export it again")
    return mesh


def read_poses(path: Path, num_views: int) -> np.ndarray:
    """Read camera-to-world poses in the data's world, OpenCV axes.

    Args:
        path: .npy of (N, 4, 4) or (N, 3, 4), or .npz in the layout of cameras_sphere.npz.
        num_views: how many there must be.

    Returns:
        (N, 4, 4) float64.

    Raises:
        PmniError: the file is missing or broken, or holds another number of poses or no proper rotations.
    """
    if not path.is_file():
        raise PmniError(f"{path}: no such file; give the poses.npy that `pmni export` wrote")
    if path.suffix == ".npz":
        _, c2w, world_from_unit = read_cameras(path, num_views)
        return transform_poses(world_from_unit, c2w)
    if path.suffix != ".npy":
        raise PmniError(f"{path}: poses are read from .npy or .npz; give the poses.npy that `pmni export` wrote")
    try:
        poses = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise PmniError(f"{path}: can't be read ({_first_line(error)}); export it again") from error
    if poses.ndim != 3 or poses.shape[1:] not in ((3, 4), (4, 4)):
        raise PmniError(f"{path}: holds an array of shape {poses.shape}; poses are (views, 4, 4)")
    if len(poses) != num_views:
        raise PmniError(f"{path}: holds {len(poses)} poses for the truth's {num_views} views; give one for each")
    c2w = np.tile(np.eye(4), (num_views, 1, 1))
    c2w[:, :3] = poses[:, :3]
    rotation = c2w[:, :3, :3]
    # comparisons with NaN are false, and so not finite is not proper
    is_proper = np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max((1, 2)) < 1e-3
    is_proper &= (np.linalg.det(rotation) > 0) & np.isfinite(c2w[:, :3, 3]).all(-1)
    if not is_proper.all():
        raise PmniError(f"{path}: pose {int(np.argmin(is_proper))} is no rotation and shift; export it again")
    return c2w


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

# SPDX-License-Identifier: Apache-2.0
"""Files that an evaluation reads: the truth folder of `pmni synth`, meshes, poses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import trimesh

from pmni_nerfstudio.data.cameras import read_cameras
from pmni_nerfstudio.data.images import open_npy
from pmni_nerfstudio.data.npz import read_npz
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.metrics import transform_poses

TRUTH_FILE = "truth.npz"
MESH_FILE = "mesh_Gt.ply"

_ARRAYS = ("c2w", "K", "scale_mat", "depth")
_MAX_BYTES = 1 << 34
_MESH_SUFFIXES = (".ply", ".obj", ".stl", ".off", ".glb", ".gltf")
_LARGEST = 1e15


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
        return float(np.cbrt(np.linalg.det(self.world_from_unit[:3, :3])))


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
    if not all((np.abs(array) < _LARGEST).all() for array in (c2w, K, world_from_unit)):
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


def read_mesh(path: Path) -> trimesh.Trimesh:
    """Read a triangle mesh of any format that trimesh knows, all parts as one, vertices as they are.

    Raises:
        PmniError: the file is missing, of an unknown format, has no faces, or has coordinates that are not finite.
    """
    if not path.is_file():
        raise PmniError(f"{path}: no such mesh; give the file that `pmni export` wrote")
    if path.suffix.lower() not in _MESH_SUFFIXES:
        raise PmniError(f"{path}: can't be read as a mesh: give one of {', '.join(_MESH_SUFFIXES)}")
    try:
        mesh = trimesh.load_mesh(path, process=False)
    except Exception as error:  # trimesh's loaders raise whatever their parsers meet
        raise PmniError(
            f"{path}: can't be read as a mesh ({_first_line(error)}); give .ply, .obj, .stl or .glb"
        ) from error
    if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
        raise PmniError(f"{path}: has no faces; export a triangle mesh")
    if not (np.abs(mesh.vertices) < _LARGEST).all():
        raise PmniError(f"{path}: has vertices that are not finite; export it again")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise PmniError(f"{path}: has faces of vertices that are not there; export it again")
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
    poses = open_npy(path)
    if poses.ndim != 3 or poses.shape[1:] not in ((3, 4), (4, 4)):
        raise PmniError(f"{path}: holds an array of shape {poses.shape}; poses are (views, 4, 4)")
    if len(poses) != num_views:
        raise PmniError(f"{path}: holds {len(poses)} poses for the truth's {num_views} views; give one for each")
    c2w = np.tile(np.eye(4), (num_views, 1, 1))
    c2w[:, :3] = poses[:, :3]
    is_proper = (np.abs(c2w) < _LARGEST).all(axis=(1, 2))  # false for NaN
    rotation = np.where(is_proper[:, None, None], c2w[:, :3, :3], 0)
    is_proper &= np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max((1, 2)) < 1e-3
    is_proper &= np.linalg.det(rotation) > 0
    if not is_proper.all():
        raise PmniError(f"{path}: pose {int(np.argmin(is_proper))} is no rotation and shift; export it again")
    return c2w


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

# SPDX-License-Identifier: Apache-2.0
"""Checked reading of results: meshes and poses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.camera_files import LARGEST, is_rigid, read_cameras
from pmni_nerfstudio.data.gltf_limits import check_gltf_size
from pmni_nerfstudio.data.images import open_npy
from pmni_nerfstudio.data.mesh_files import mesh_bytes
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.transforms import transform_poses

_MESH_SUFFIXES = (".ply", ".obj", ".stl", ".off", ".glb", ".gltf")


def read_mesh(path: Path) -> trimesh.Trimesh:
    """Read a triangle mesh; parts are concatenated, and vertices are not merged.

    Raises:
        PmniError: the file is missing or broken, its format is unknown, or the mesh is empty or invalid.
    """
    if not path.is_file():
        raise PmniError(f"{path}: no such mesh; give the file that `pmni export` wrote")
    if path.suffix.lower() not in _MESH_SUFFIXES:
        raise PmniError(f"{path}: can't be read as a mesh; give one of {', '.join(_MESH_SUFFIXES)}")
    try:
        if path.suffix.lower() in (".glb", ".gltf"):
            check_gltf_size(path)
        mesh = trimesh.load_mesh(path, process=False)
    except Exception as error:  # trimesh's loaders raise errors of many types
        raise PmniError(
            f"{path}: can't be read as a mesh ({_first_line(error)}); give .ply, .obj, .stl or .glb"
        ) from error
    if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
        raise PmniError(f"{path}: has no faces; export a triangle mesh")
    if not (np.abs(mesh.vertices) < LARGEST).all():
        raise PmniError(f"{path}: has vertices that are not finite; export it again")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise PmniError(f"{path}: has faces with vertices that do not exist; export it again")
    return mesh


def read_poses(path: Path, num_views: int) -> np.ndarray:
    """Read camera-to-world poses in the data world, OpenCV axes.

    Args:
        path: .npy file of shape (N, 4, 4) or (N, 3, 4), or .npz file in the layout of cameras_sphere.npz.
        num_views: required number N of poses.

    Returns:
        (N, 4, 4) float64.

    Raises:
        PmniError: the file is missing or broken, the number of poses is wrong, or a pose is not rigid.
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
        raise PmniError(
            f"{path}: holds {len(poses)} poses for {num_views} views of the ground truth; give one for each view"
        )
    c2w = np.tile(np.eye(4), (num_views, 1, 1))
    c2w[:, :3] = poses[:, :3]
    for i, pose in enumerate(c2w):
        if not is_rigid(pose):
            raise PmniError(f"{path}: pose {i} is not a rotation and translation; export it again")
    return c2w


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def write_mesh(path: Path, mesh: trimesh.Trimesh) -> None:
    """Write a mesh atomically in the format of the path's suffix.

    Vertices far from the origin, as in map coordinates, keep their precision: see `data.mesh_files.mesh_bytes`.

    Raises:
        PmniError: The format has single precision, which does not resolve a mesh so far from the origin.
    """
    content = mesh_bytes(mesh, path)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)

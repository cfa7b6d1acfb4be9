# SPDX-License-Identifier: Apache-2.0
"""Axis conventions, rigid poses and similarities: every change of frame of the package.

Camera axes:
    OpenCV: x right, y down, z forward. Used everywhere inside the package.
    OpenGL: x right, y up, z backward. nerfstudio's cameras.
    Stored normals: x right, y up, z towards the viewer. Files of camera-space normals, as SuperNormal and PMNI release
        them; the directions are those of the OpenGL axes.

Worlds:
    Data world: the world and units of the scene's own camera file.
    Unit-sphere world: the object fits the unit sphere about the origin; `world_from_unit` (the `scale_mat` of a camera
        file) takes it to the data world.

A pose is named by its direction: `c2w` takes camera coordinates to the world, `w2c` the world to the camera.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:  # reading a scene needs no torch, which takes seconds to load
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")

_FLIP_Y_AND_Z = (1.0, -1.0, -1.0)

OPENCV_FROM_STORED = np.diag(_FLIP_Y_AND_Z)
"""Rotation from the axes of stored camera-space normals to OpenCV camera axes, as a matrix; see `flip_y_and_z`."""
OPENCV_FROM_DIRECTX = np.diag([1.0, 1.0, -1.0])
"""Reflection from axes with x right, y down and z towards the viewer to OpenCV camera axes."""


def flip_y_and_z(vectors: Array) -> Array:
    """Change vectors (..., 3) between OpenCV and OpenGL camera axes, or between OpenCV axes and stored normals.

    The change is its own inverse. NumPy arrays and tensors keep their type.
    """
    if isinstance(vectors, np.ndarray):
        return vectors * np.array(_FLIP_Y_AND_Z, dtype=vectors.dtype if vectors.dtype.kind == "f" else np.float64)
    return vectors * vectors.new_tensor(_FLIP_Y_AND_Z)


def flip_camera_axes(c2w: Array) -> Array:
    """Change camera-to-world matrices (..., 3 or 4, 4) between OpenCV and OpenGL camera axes.

    The camera does not move; only the axes in which its coordinates are given change. The change is its own inverse.
    """
    if isinstance(c2w, np.ndarray):
        return c2w * np.array((*_FLIP_Y_AND_Z, 1.0))
    return c2w * c2w.new_tensor((*_FLIP_Y_AND_Z, 1.0))


def homogeneous(pose: Float[Tensor, "*b 3 4"]) -> Float[Tensor, "*b 4 4"]:
    """Append the row (0, 0, 0, 1) to matrices (..., 3, 4)."""
    import torch

    last = pose.new_tensor([0.0, 0.0, 0.0, 1.0])
    return torch.cat([pose, last.expand(*pose.shape[:-2], 1, 4)], dim=-2)


def opencv_from_nerfstudio(c2w: Float[Tensor, "n r 4"]) -> Float[np.ndarray, "n 4 4"]:
    """nerfstudio's poses (n, 3 or 4, 4), OpenGL axes, as homogeneous OpenCV poses in double precision."""
    return flip_camera_axes(homogeneous(c2w[:, :3].double())).detach().cpu().numpy()


def nerfstudio_from_opencv(c2w: Float[np.ndarray, "n 4 4"]) -> Float[Tensor, "n 3 4"]:
    """OpenCV poses as nerfstudio's: OpenGL axes, (n, 3, 4), single precision."""
    import torch

    return torch.from_numpy(flip_camera_axes(c2w))[:, :3].float()


def nearest_rotation(matrices: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3 3"]:
    """Nearest rotations, in the Frobenius norm, to matrices that are nearly rotations (the polar factor)."""
    u, _, vt = np.linalg.svd(matrices)
    return u @ vt


def orthonormalized(c2w: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 4 4"]:
    """Poses in double precision whose rotations are exactly orthonormal; single precision leaves errors of 1e-7."""
    c2w = np.array(c2w, dtype=np.float64)
    c2w[:, :3, :3] = nearest_rotation(c2w[:, :3, :3])
    return c2w


def scale_of(similarity: Float[np.ndarray, "4 4"]) -> float:
    """Scale factor of a similarity: units of the target world per unit of the source world."""
    return float(np.cbrt(np.linalg.det(similarity[:3, :3])))


def transform_points(similarity: Float[np.ndarray, "4 4"], points: Float[np.ndarray, "p 3"]) -> np.ndarray:
    """Points (P, 3) moved by a similarity or an affine map."""
    return points @ similarity[:3, :3].T + similarity[:3, 3]


def transform_poses(similarity: Float[np.ndarray, "4 4"], c2w: Float[np.ndarray, "n 4 4"]) -> np.ndarray:
    """Camera-to-world poses in the target world of a similarity.

    Camera centers move with the similarity; camera axes only rotate, because a camera has no size. Axes keep their
    convention.
    """
    poses = similarity @ c2w
    poses[:, :3, :3] /= scale_of(similarity)
    return orthonormalized(poses)

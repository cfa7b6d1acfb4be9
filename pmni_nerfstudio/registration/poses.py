# SPDX-License-Identifier: Apache-2.0
"""Poses of registration: world-to-camera motions that turn about the object, and the similarity that nothing fixes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation


@dataclass(frozen=True, eq=False)
class Poses:
    """World to camera: x_camera = R x_world + t, OpenCV axes, unit-sphere world."""

    R: Float[np.ndarray, "n 3 3"]
    t: Float[np.ndarray, "n 3"]

    @staticmethod
    def from_c2w(c2w: Float[np.ndarray, "n 4 4"]) -> Poses:
        """Of camera-to-world matrices."""
        w2c = np.linalg.inv(c2w)
        return Poses(w2c[:, :3, :3], w2c[:, :3, 3])

    def c2w(self) -> Float[np.ndarray, "n 4 4"]:
        """Camera-to-world matrices."""
        out = np.tile(np.eye(4), (len(self.R), 1, 1))
        out[:, :3, :3] = np.swapaxes(self.R, 1, 2)
        out[:, :3, 3] = self.centres()
        return out

    def centres(self) -> Float[np.ndarray, "n 3"]:
        """The cameras' positions in the world."""
        return -np.einsum("nji,nj->ni", self.R, self.t)

    def __len__(self) -> int:
        return len(self.R)

    def subset(self, indices: np.ndarray | list[int]) -> Poses:
        """Some of the poses."""
        return Poses(self.R[indices], self.t[indices])

    def retract(self, delta: Float[np.ndarray, "n 6"]) -> Poses:
        """Moved by twists: a rotation vector (radians, camera axes) about the world's origin, and a shift of t.

        Turning about the object and not about the camera keeps the two parts nearly independent for a camera that
        is many radii away.
        """
        R = Rotation.from_rotvec(delta[:, :3]).as_matrix() @ self.R
        u, _, vt = np.linalg.svd(R)  # products drift off the rotations, a little each
        return Poses(u @ vt, self.t + delta[:, 3:])

    def to_camera(self, view: int, points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 3"]:
        """World points in a view's camera axes."""
        return points @ self.R[view].T + self.t[view]

    def transformed(self, scale: float, rotation: Float[np.ndarray, "3 3"], shift: Float[np.ndarray, " 3"]) -> Poses:
        """The same cameras in a world where x is at scale * rotation x + shift."""
        R = self.R @ rotation.T
        return Poses(R, scale * self.t - R @ shift)


def align(poses: Poses, reference: Poses) -> tuple[float, Float[np.ndarray, "3 3"], Float[np.ndarray, " 3"]]:
    """Similarity (scale, rotation, shift) of the world that brings poses nearest to reference ones.

    The rotation is the mean of what the orientations say; scale and shift make the places agree where each camera sees
    the world's origin. Both robustly (L1 by reweighting), since a reference may be rough.
    """
    relative = np.swapaxes(reference.R, 1, 2) @ poses.R
    weights = np.ones(len(poses))
    rotation = np.eye(3)
    for _ in range(20):
        u, _, vt = np.linalg.svd((weights[:, None, None] * relative).sum(axis=0))
        rotation = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
        weights = 1 / np.maximum(np.linalg.norm(relative - rotation, axis=(1, 2)), 1e-3)
    turned = poses.R @ rotation.T
    rows = np.concatenate([poses.t[:, :, None], -turned], axis=2)
    # Cameras that all look the same way can't tell a shift along it from a scaling: then it is the scaling.
    no_shift = np.concatenate([np.zeros((3, 1)), 1e-2 * np.eye(3)], axis=1)
    weights = np.ones(len(poses))
    scale, shift = 1.0, np.zeros(3)
    for _ in range(20):
        root = np.sqrt(weights)[:, None, None]
        system = np.concatenate([(root * rows).reshape(-1, 4), no_shift])
        right = np.concatenate([(root[..., 0] * reference.t).ravel(), np.zeros(3)])
        solution = np.linalg.lstsq(system, right, rcond=None)[0]
        scale, shift = float(solution[0]), solution[1:]
        weights = 1 / np.maximum(np.linalg.norm(rows @ solution - reference.t, axis=1), 1e-3)
    if scale <= 0:  # poses that have nothing to do with the reference: about the same size, at the same place
        sizes = np.linalg.norm(reference.t, axis=1) / np.linalg.norm(poses.t, axis=1)
        return float(np.median(sizes)), rotation, np.zeros(3)
    return scale, rotation, shift

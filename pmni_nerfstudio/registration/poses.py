# SPDX-License-Identifier: Apache-2.0
"""World-to-camera poses of all views, and the alignment of two sets of poses by a similarity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.transforms import nearest_rotation


@dataclass(frozen=True, eq=False)
class Poses:
    """World-to-camera poses x_camera = R x_world + t; OpenCV axes, unit-sphere world."""

    R: Float[np.ndarray, "n 3 3"]
    t: Float[np.ndarray, "n 3"]

    @staticmethod
    def from_c2w(c2w: Float[np.ndarray, "n 4 4"]) -> Poses:
        """Poses from camera-to-world matrices."""
        w2c = np.linalg.inv(c2w)
        return Poses(w2c[:, :3, :3], w2c[:, :3, 3])

    def c2w(self) -> Float[np.ndarray, "n 4 4"]:
        """Camera-to-world matrices."""
        out = np.tile(np.eye(4), (len(self.R), 1, 1))
        out[:, :3, :3] = np.swapaxes(self.R, 1, 2)
        out[:, :3, 3] = self.centers()
        return out

    def centers(self) -> Float[np.ndarray, "n 3"]:
        """Camera centers in world coordinates."""
        return -np.einsum("nji,nj->ni", self.R, self.t)

    def __len__(self) -> int:
        return len(self.R)

    def subset(self, indices: np.ndarray | list[int]) -> Poses:
        """The poses at the given indices."""
        return Poses(self.R[indices], self.t[indices])

    def replaced(self, indices: np.ndarray | list[int], poses: Poses) -> Poses:
        """A copy whose poses at the given indices are exchanged for others."""
        R, t = self.R.copy(), self.t.copy()
        R[indices], t[indices] = poses.R, poses.t
        return Poses(R, t)

    def retract(self, delta: Float[np.ndarray, "n 6"]) -> Poses:
        """Poses moved by twists: a rotation vector about the world's origin (radians, camera axes), then a shift of t.

        Rotating about the object instead of the camera nearly decouples rotation and translation of a camera that is
        many object radii away.
        """
        R = Rotation.from_rotvec(delta[:, :3]).as_matrix() @ self.R
        return Poses(nearest_rotation(R), self.t + delta[:, 3:])

    def to_camera(self, view: int, points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 3"]:
        """World points in the camera axes of one view."""
        return points @ self.R[view].T + self.t[view]

    def transformed(self, scale: float, rotation: Float[np.ndarray, "3 3"], shift: Float[np.ndarray, " 3"]) -> Poses:
        """Poses of the same cameras after a similarity of the world, x -> scale * rotation x + shift."""
        R = self.R @ rotation.T
        return Poses(R, scale * self.t - R @ shift)


def align(poses: Poses, reference: Poses) -> tuple[float, Float[np.ndarray, "3 3"], Float[np.ndarray, " 3"]]:
    """Similarity of the world that best maps poses to reference poses.

    The rotation is the robust mean of the relative orientations. Scale and shift align the positions of the world's
    origin in the camera frames. Both are L1 estimates by iteratively reweighted least squares, since the reference may
    be rough.

    Returns:
        Scale, rotation and shift, as `Poses.transformed` takes them.
    """
    relative = np.swapaxes(reference.R, 1, 2) @ poses.R
    weights = np.ones(len(poses))
    rotation = np.eye(3)
    for _ in range(20):
        rotation = Rotation.from_matrix(relative).mean(weights).as_matrix()
        weights = 1 / np.maximum(np.linalg.norm(relative - rotation, axis=(1, 2)), 1e-3)
    rotated = poses.R @ rotation.T
    rows = np.concatenate([poses.t[:, :, None], -rotated], axis=2)
    # Cameras that all look the same way cannot distinguish a shift along the optical axis from a change of scale; a
    # weak prior of zero shift decides for the scale.
    prior = np.concatenate([np.zeros((3, 1)), 1e-2 * np.eye(3)], axis=1)
    weights = np.ones(len(poses))
    scale, shift = 1.0, np.zeros(3)
    for _ in range(20):
        root = np.sqrt(weights)[:, None, None]
        system = np.concatenate([(root * rows).reshape(-1, 4), prior])
        right = np.concatenate([(root[..., 0] * reference.t).ravel(), np.zeros(3)])
        solution = np.linalg.lstsq(system, right, rcond=None)[0]
        scale, shift = float(solution[0]), solution[1:]
        weights = 1 / np.maximum(np.linalg.norm(rows @ solution - reference.t, axis=1), 1e-3)
    if scale <= 0:  # poses unrelated to the reference: match only the cameras' distances
        sizes = np.linalg.norm(reference.t, axis=1) / np.linalg.norm(poses.t, axis=1)
        return float(np.median(sizes)), rotation, np.zeros(3)
    return scale, rotation, shift

# SPDX-License-Identifier: Apache-2.0
"""Random perturbation of camera poses, for experiments with the rough poses that users have."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation


def perturb_poses(
    c2w: Float[np.ndarray, "n 4 4"], rotation_deg: float, translation: float, rng: np.random.Generator
) -> Float[np.ndarray, "n 4 4"]:
    """Rotate cameras about the object, shift them, and aim each at the object again.

    A shift alone would move the object out of the image, which the mask of a real capture rules out. After the shift
    each camera therefore rotates about its own center, by the smallest angle, until the world's origin projects to the
    same pixel as before the shift.

    Args:
        c2w: camera-to-world, OpenCV axes, the object at the origin.
        rotation_deg: root mean square of the rotation angle about the origin, in degrees.
        translation: standard deviation of the shift along each axis, in world units.
        rng: random generator; the noise of all views is drawn at once.
    """
    noise = rng.standard_normal((2, len(c2w), 3))
    rotation = Rotation.from_rotvec(np.deg2rad(rotation_deg) * noise[0] / np.sqrt(3)).as_matrix()
    perturbed = c2w.copy()
    perturbed[:, :3] = rotation @ c2w[:, :3]
    to_origin = -perturbed[:, :3, 3]
    perturbed[:, :3, 3] += translation * noise[1]
    perturbed[:, :3, :3] = _rotations_between(to_origin, -perturbed[:, :3, 3]) @ perturbed[:, :3, :3]
    return perturbed


def _rotations_between(source: Float[np.ndarray, "n 3"], target: Float[np.ndarray, "n 3"]) -> np.ndarray:
    """Smallest rotations (n, 3, 3) that take each source direction to its target direction."""
    axis = np.cross(source, target)
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    angle = np.arctan2(sine, (source * target).sum(-1, keepdims=True))
    # Parallel directions define no axis and need no rotation.
    return Rotation.from_rotvec(axis * np.divide(angle, sine, out=np.zeros_like(sine), where=sine > 0)).as_matrix()

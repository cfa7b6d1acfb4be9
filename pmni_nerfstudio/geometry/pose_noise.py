# SPDX-License-Identifier: Apache-2.0
"""Noise on camera poses, for experiments: what a user's rough poses are like."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation


def perturb_poses(
    c2w: Float[np.ndarray, "n 4 4"], rotation_deg: float, translation: float, rng: np.random.Generator
) -> Float[np.ndarray, "n 4 4"]:
    """Rough poses out of good ones: turned about the object, shifted, and aimed at it again.

    A shift alone would push the object out of the frame, which no rough pose of a masked object does: each camera
    then turns about its own centre, by the least angle, until it sees the world's origin at the pixel of before.

    Args:
        c2w: camera-to-world, OpenCV axes, the object at the origin.
        rotation_deg: root mean square of the angle about the origin.
        translation: standard deviation of the shift along each axis, in the world's units.
        rng: source of the noise, drawn for all views at once.
    """
    noise = rng.standard_normal((2, len(c2w), 3))
    turn = Rotation.from_rotvec(np.deg2rad(rotation_deg) * noise[0] / np.sqrt(3)).as_matrix()
    rough = c2w.copy()
    rough[:, :3] = turn @ c2w[:, :3]
    before = -rough[:, :3, 3]
    rough[:, :3, 3] += translation * noise[1]
    rough[:, :3, :3] = _least_turns(before, -rough[:, :3, 3]) @ rough[:, :3, :3]
    return rough


def _least_turns(source: Float[np.ndarray, "n 3"], target: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3 3"]:
    """Rotations by the least angle that take each source's direction to its target's."""
    axis = np.cross(source, target)
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    angle = np.arctan2(sine, (source * target).sum(-1, keepdims=True))
    # Parallel directions leave no axis, and need none.
    return Rotation.from_rotvec(axis * np.divide(angle, sine, out=np.zeros_like(sine), where=sine > 0)).as_matrix()

# SPDX-License-Identifier: Apache-2.0
"""Display frame of the page's 3D views: the object is centered at the origin with radius 1, and z points up.

Up is as the cameras see it, so that a turntable keeps the object upright.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh

from pmni_nerfstudio.evaluation.metrics import object_radius
from pmni_nerfstudio.geometry.transforms import scale_of

_MIN_MEAN_UP = 0.3
"""Minimum length of the cameras' mean up vector; below, the cameras have no common up direction."""


@dataclass(frozen=True, eq=False)
class Frame:
    """Display frame: display = rotation @ (world - center) / radius."""

    center: np.ndarray
    """(3,) center of the object, in the data's world."""
    radius: float
    """Radius of the object, in the data's units."""
    rotation: np.ndarray
    """(3, 3) rotation from the data's world to the display frame."""
    eye: np.ndarray
    """(3,) unit vector towards the first camera, in the display frame."""

    def points(self, world: np.ndarray) -> np.ndarray:
        """Transform points (..., 3) from the data's world to the display frame."""
        return (world - self.center) @ self.rotation.T / self.radius

    def after(self, similarity: np.ndarray) -> Frame:
        """Frame of another world, whose points a similarity (4, 4) moves into this frame's world first."""
        scale = scale_of(similarity)
        rotation = similarity[:3, :3] / scale
        center = rotation.T @ (self.center - similarity[:3, 3]) / scale
        return Frame(center, self.radius / scale, self.rotation @ rotation, self.eye)

    @property
    def display_from_world(self) -> np.ndarray:
        """Similarity (4, 4) from the data's world to the display frame."""
        similarity = np.eye(4)
        similarity[:3, :3] = self.rotation / self.radius
        similarity[:3, 3] = -similarity[:3, :3] @ self.center
        return similarity


def display_frame(mesh: trimesh.Trimesh, c2w: np.ndarray | None) -> Frame:
    """Display frame in which the object is upright and faces the first camera.

    Args:
        mesh: Mesh in the data's world.
        c2w: (N, 4, 4) poses in the same world, OpenCV axes; None: z is up.
    """
    center = mesh.bounds.mean(axis=0)
    radius = object_radius(mesh)
    if c2w is None:
        return Frame(center, radius, np.eye(3), np.array([0.8, -0.6, 0.3]) / np.linalg.norm([0.8, -0.6, 0.3]))
    # Cameras around an object may all look down on it: their mean up vector is vertical though none of them is.
    up = -c2w[:, :3, 1].mean(axis=0)
    if np.linalg.norm(up) < _MIN_MEAN_UP:
        up = -c2w[0, :3, 1]
    z = up / np.linalg.norm(up)
    towards = c2w[0, :3, 3] - center
    y = -(towards - z * (towards @ z))
    if np.linalg.norm(y) < 1e-6 * np.linalg.norm(towards):  # viewed along the up direction
        y = -c2w[0, :3, 1] - z * (-c2w[0, :3, 1] @ z)
    y /= np.linalg.norm(y)
    rotation = np.stack([np.cross(y, z), y, z])
    return Frame(center, radius, rotation, rotation @ towards / np.linalg.norm(towards))

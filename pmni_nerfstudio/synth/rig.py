# SPDX-License-Identifier: Apache-2.0
"""Cameras of a synthetic capture: a ring around the object, and rough poses with a given error."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.camera_rings import look_at
from pmni_nerfstudio.geometry.pose_noise import perturb_poses

FRAME_FILL = 0.94
"""Diameter of the unit sphere's silhouette as a fraction of the shorter side of the frame."""

JITTER_DEG = {"azimuth": 5.0, "elevation": 5.0, "roll": 3.0}
"""Half widths, in degrees, of the uniform deviations at a jitter of 1."""
JITTER_RADII = {"distance": 0.05, "target": 0.05}
"""Half widths of the uniform deviations at a jitter of 1: relative for the distance, in sphere radii for the target."""


def intrinsics(width: int, height: int, distance: float) -> np.ndarray:
    """K (3, 3), pixel centers at integers, with which the unit sphere at a distance (in its radii) fills the frame."""
    focal = FRAME_FILL * min(width, height) / 2 * np.sqrt(distance**2 - 1)
    return np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])


def ring(
    views: int, elevation_deg: float, distance: float, jitter: float, clockwise: bool, rng: np.random.Generator
) -> np.ndarray:
    """True poses on a ring around the z axis, which points up.

    Args:
        views: number of cameras, evenly spaced on the full circle.
        elevation_deg: elevation above the object's equator, in degrees.
        distance: distance of the cameras from the origin, in radii of the unit sphere.
        jitter: deviation of each camera from the ring, in units of JITTER_DEG and JITTER_RADII.
        clockwise: order of the cameras, as seen from above.
        rng: random generator for the jitter.

    Returns:
        Camera-to-world poses (views, 4, 4), OpenCV axes, unit-sphere world.
    """
    deviation = jitter * rng.uniform(-1, 1, (views, 7))
    direction = -1 if clockwise else 1
    azimuth = direction * 2 * np.pi * np.arange(views) / views + np.deg2rad(JITTER_DEG["azimuth"] * deviation[:, 0])
    elevation = np.deg2rad(elevation_deg + JITTER_DEG["elevation"] * deviation[:, 1])
    toward = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=-1
    )
    eye = distance * (1 + JITTER_RADII["distance"] * deviation[:, 2:3]) * toward
    # The derivative of `toward` by elevation: unlike the z axis, never parallel to the view, even above the pole.
    up = np.stack(
        [-np.sin(elevation) * np.cos(azimuth), -np.sin(elevation) * np.sin(azimuth), np.cos(elevation)], axis=-1
    )
    c2w = look_at(eye, JITTER_RADII["target"] * deviation[:, 4:7], up)
    roll = np.deg2rad(JITTER_DEG["roll"] * deviation[:, 3:4]) * np.array([0.0, 0.0, 1.0])
    c2w[:, :3, :3] = c2w[:, :3, :3] @ Rotation.from_rotvec(roll).as_matrix()
    return c2w


def rough_poses(c2w: np.ndarray, rotation_deg: float, translation_radii: float, rng: np.random.Generator) -> np.ndarray:
    """Rough poses as a user might supply them: cameras aimed at the object's center, then perturbed.

    Cameras rotate about the object, not about their own centers: an error that moved the object out of the frame would be
    corrected by the mask alone.

    Args:
        c2w: true camera-to-world poses (N, 4, 4), OpenCV axes.
        rotation_deg: root mean square rotation angle in degrees, about axes of random direction.
        translation_radii: standard deviation of the translation along each axis, in radii of the unit sphere.
        rng: random generator.

    Returns:
        Camera-to-world poses (N, 4, 4); a copy of the true ones if both errors are zero.
    """
    if rotation_deg == 0 and translation_radii == 0:
        return c2w.copy()
    # Aim first, because noise alone would keep the object at its true pixel, which a user does not know.
    aimed = look_at(c2w[:, :3, 3], np.zeros((len(c2w), 3)), -c2w[:, :3, 1])
    return perturb_poses(aimed, rotation_deg, translation_radii, rng)

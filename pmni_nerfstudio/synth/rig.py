# SPDX-License-Identifier: Apache-2.0
"""The cameras of a synthetic capture: a ring round the object, and rough poses beside the true ones."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.camera_rings import look_at
from pmni_nerfstudio.geometry.pose_noise import perturb_poses

FRAME_FILL = 0.94
"""The unit sphere's silhouette takes this much of the frame's shorter side."""

JITTER_DEG = {"azimuth": 5.0, "elevation": 5.0, "roll": 3.0}
JITTER_RADII = {"distance": 0.05, "target": 0.05}
"""What one unit of jitter is: the half widths of uniform errors; the distance's as a part of the distance."""


def intrinsics(width: int, height: int, distance: float) -> np.ndarray:
    """K (3, 3), integer pixel centres, with which the unit sphere at a distance (in its radii) fills the frame."""
    focal = FRAME_FILL * min(width, height) / 2 * np.sqrt(distance**2 - 1)
    return np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])


def ring(
    views: int, elevation_deg: float, distance: float, jitter: float, clockwise: bool, rng: np.random.Generator
) -> np.ndarray:
    """True poses of a turntable about the z axis.

    Args:
        views: how many, evenly round the whole circle.
        elevation_deg: of the ring above the object's equator.
        distance: of the cameras, in radii of the unit sphere.
        jitter: how far each camera strays off the ring, in units of JITTER_DEG and JITTER_RADII.
        clockwise: as seen from above.
        rng: source of the jitter.

    Returns:
        c2w (views, 4, 4), OpenCV axes, unit-sphere world.
    """
    stray = jitter * rng.uniform(-1, 1, (views, 7))
    direction = -1 if clockwise else 1
    azimuth = direction * 2 * np.pi * np.arange(views) / views + np.deg2rad(JITTER_DEG["azimuth"] * stray[:, 0])
    elevation = np.deg2rad(elevation_deg + JITTER_DEG["elevation"] * stray[:, 1])
    toward = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=-1
    )
    eye = distance * (1 + JITTER_RADII["distance"] * stray[:, 2:3]) * toward
    # the ring's own up, d(toward)/d(elevation), is never parallel to the view, not even over the pole
    up = np.stack(
        [-np.sin(elevation) * np.cos(azimuth), -np.sin(elevation) * np.sin(azimuth), np.cos(elevation)], axis=-1
    )
    c2w = look_at(eye, JITTER_RADII["target"] * stray[:, 4:7], up)
    roll = np.deg2rad(JITTER_DEG["roll"] * stray[:, 3:4]) * np.array([0.0, 0.0, 1.0])
    c2w[:, :3, :3] = c2w[:, :3, :3] @ Rotation.from_rotvec(roll).as_matrix()
    return c2w


def rough_poses(c2w: np.ndarray, rotation_deg: float, translation_radii: float, rng: np.random.Generator) -> np.ndarray:
    """Poses as a user might have them: turned about the object, shifted, and aimed at it again.

    Cameras turn about the object and not about themselves, and look at its middle, because a rough pose that put
    the object out of the frame would be mended by its mask alone.

    Args:
        c2w: (N, 4, 4) true poses, OpenCV axes.
        rotation_deg: root mean square of the angle turned, about axes of any direction.
        translation_radii: standard deviation of the shift along each axis, in radii of the unit sphere.
        rng: source of the noise.

    Returns:
        c2w (N, 4, 4); the true ones themselves where both noises are zero.
    """
    if rotation_deg == 0 and translation_radii == 0:
        return c2w.copy()
    # Aimed first: noise alone keeps the object at its true pixel, which a user doesn't know either.
    aimed = look_at(c2w[:, :3, 3], np.zeros((len(c2w), 3)), -c2w[:, :3, 1])
    return perturb_poses(aimed, rotation_deg, translation_radii, rng)

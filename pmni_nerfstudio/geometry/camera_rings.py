# SPDX-License-Identifier: Apache-2.0
"""Cameras in a ring about an object that fits their masks: what is supposed where no poses are known."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

OBJECT_RADIUS = 0.92
"""Of the sphere about the origin that the object is thought to fill: the unit sphere with a margin."""


def object_distance(K: Float[np.ndarray, "n 3 3"], masks: Bool[np.ndarray, "n h w"]) -> float:
    """Distance, in radii of the unit sphere, at which the largest of the masks fits a sphere of radius .92."""
    largest = 0.0
    for k, mask in zip(K, masks):
        y, x = np.nonzero(mask)
        rays = np.linalg.solve(k, np.stack([x, y, np.ones_like(x)])).T[:, :2]
        largest = max(largest, float(np.linalg.norm(rays - rays.mean(axis=0), axis=1).max()))
    return OBJECT_RADIUS / largest


def ring_c2w(
    count: int, distance: float, elevation_deg: float = 20.0, clockwise: bool = False
) -> Float[np.ndarray, "n 4 4"]:
    """Cameras evenly round the y axis, which points up; they look at the origin.

    Args:
        count: of cameras.
        distance: from the origin.
        elevation_deg: above the plane y = 0.
        clockwise: as seen from above.

    Returns:
        Camera-to-world, OpenCV axes (x right, y down, z forward).
    """
    azimuth = (-1 if clockwise else 1) * 2 * np.pi * np.arange(count) / count
    elevation = np.deg2rad(elevation_deg)
    back = np.stack(
        [np.cos(elevation) * np.sin(azimuth), np.full(count, np.sin(elevation)), np.cos(elevation) * np.cos(azimuth)],
        axis=1,
    )
    right = np.stack([np.cos(azimuth), np.zeros(count), -np.sin(azimuth)], axis=1)
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, :3, 0], c2w[:, :3, 1], c2w[:, :3, 2] = right, -np.cross(back, right), -back
    c2w[:, :3, 3] = distance * back
    return c2w


def look_at(eye: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Cameras at eye (N, 3) that look at target (N, 3), with up (N, 3) upward in the image: c2w (N, 4, 4), OpenCV axes."""
    forward = target - eye
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    c2w = np.tile(np.eye(4), (len(eye), 1, 1))
    c2w[:, :3, :3] = np.stack([right, np.cross(forward, right), forward], axis=-1)
    c2w[:, :3, 3] = eye
    return c2w

# SPDX-License-Identifier: Apache-2.0
"""Cameras on a ring around an object at the origin: the initial guess where no poses are known."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.geometry.cameras import pixel_directions

OBJECT_RADIUS = 0.92
"""Assumed radius of the object about the origin: the unit sphere with a margin."""


def object_distance(K: Float[np.ndarray, "n 3 3"], masks: Bool[np.ndarray, "n h w"]) -> float:
    """Distance at which the largest mask fits a sphere of radius OBJECT_RADIUS, in radii of the unit sphere."""
    return OBJECT_RADIUS / max(radius_at_depth_1(k, mask) for k, mask in zip(K, masks))


def radius_at_depth_1(K: Float[np.ndarray, "3 3"], mask: Bool[np.ndarray, "h w"]) -> float:
    """Radius of a mask about its centroid, projected onto the plane of depth 1."""
    # The pixel farthest from any point is the first or the last one of its row.
    rows = np.flatnonzero(mask.any(axis=1))
    first, last = mask[rows].argmax(axis=1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([x, rows], axis=-1) for x in (first, last)])
    offsets = pixel_directions(K, ends) - pixel_directions(K, mask_centroid(mask))
    return float(np.linalg.norm(offsets[:, :2], axis=1).max())


def mask_centroid(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, " 2"]:
    """Mean (x, y) of a mask's pixels."""
    by_row, by_column = mask.sum(axis=1), mask.sum(axis=0)
    return np.array([by_column @ np.arange(mask.shape[1]), by_row @ np.arange(len(mask))]) / by_row.sum()


def ring_c2w(
    count: int, distance: float, elevation_deg: float = 20.0, clockwise: bool = False
) -> Float[np.ndarray, "n 4 4"]:
    """Cameras evenly spaced on a ring around the y axis, which points up, all looking at the origin.

    Args:
        count: number of cameras.
        distance: distance of the cameras from the origin.
        elevation_deg: elevation above the plane y = 0, in degrees.
        clockwise: order of the cameras, as seen from above.

    Returns:
        Camera-to-world, OpenCV axes.
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


def look_at(
    eye: Float[np.ndarray, "n 3"], target: Float[np.ndarray, "n 3"], up: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n 4 4"]:
    """Camera-to-world poses, OpenCV axes, of cameras at `eye` that look at `target` with `up` upward in the image."""
    forward = target - eye
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    c2w = np.tile(np.eye(4), (len(eye), 1, 1))
    c2w[:, :3, :3] = np.stack([right, np.cross(forward, right), forward], axis=-1)
    c2w[:, :3, 3] = eye
    return c2w

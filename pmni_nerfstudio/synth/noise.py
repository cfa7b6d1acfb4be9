# SPDX-License-Identifier: Apache-2.0
"""What real captures do to exact maps: noise and bias of normals, wandering outlines of masks."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

GRAZING_COSINE = 0.01
"""Noise tilts no normal further away from the camera than this: a sensor's normal faces the sensor."""


def smooth_fields(shape: tuple[int, int], count: int, rng: np.random.Generator, waves: int = 6) -> np.ndarray:
    """Random fields (H, W, count) of a few waves across the frame; the root mean square of their length is one."""
    v, u = np.meshgrid(np.linspace(0, 1, shape[0]), np.linspace(0, 1, shape[1]), indexing="ij")
    frequency = rng.uniform(-3, 3, (2, count, waves))
    phase = rng.uniform(0, 2 * np.pi, (count, waves))
    amplitude = rng.standard_normal((count, waves))
    angle = 2 * np.pi * (frequency[0] * u[..., None, None] + frequency[1] * v[..., None, None]) + phase
    field = (amplitude * np.cos(angle)).sum(-1)
    return field / np.sqrt((field**2).sum(-1).mean())


def disturb_normals(
    normals: np.ndarray,
    view_rays: np.ndarray,
    mask: np.ndarray,
    noise_deg: float,
    bias_deg: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Normals of one view with noise in each pixel and a smooth bias over the frame, still facing the camera.

    Args:
        normals: (H, W, 3) unit on the mask, camera frame.
        view_rays: (H, W, 3) unit directions of the pixels' rays, same frame.
        mask: (H, W) bool; nothing changes off it.
        noise_deg: root mean square of the angle between a normal and its noisy self.
        bias_deg: root mean square of the angle of the smooth field of rotations.
        rng: source of both.

    Returns:
        (H, W, 3), same dtype.
    """
    height, width = mask.shape
    bias = np.deg2rad(bias_deg) * smooth_fields((height, width), 3, rng)[mask]
    n = Rotation.from_rotvec(bias).apply(normals[mask].astype(np.float64))
    rays = view_rays[mask]
    # a turn about an axis across the normal: a Gaussian in the tangent plane, half of the variance along each axis
    push = rng.standard_normal((height, width, 3))[mask] * np.deg2rad(noise_deg) / np.sqrt(2)
    n = Rotation.from_rotvec(push - (push * n).sum(-1, keepdims=True) * n).apply(n)
    away = (n * rays).sum(-1)
    turned = away > -GRAZING_COSINE
    across = n[turned] - away[turned, None] * rays[turned]
    across *= np.sqrt(1 - GRAZING_COSINE**2) / np.linalg.norm(across, axis=-1, keepdims=True)
    n[turned] = across - GRAZING_COSINE * rays[turned]
    out = normals.copy()
    out[mask] = n
    return out


def disturb_mask(mask: np.ndarray, noise_px: float, rng: np.random.Generator, holes: int = 4) -> np.ndarray:
    """A mask whose outline wanders smoothly by noise_px (root mean square, pixels) and which has a few holes of 3x3."""
    to_inside, to_outside = (
        cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for side in (~mask, mask)
    )
    # the outline runs between pixels, half a pixel before the nearest one of the other side
    outside_px = np.where(mask, 0.5 - to_outside, to_inside - 0.5)
    wander = gaussian_filter(rng.standard_normal(mask.shape), 2.0)
    noisy = outside_px - noise_px * wander / wander.std() < 0
    inside = np.argwhere(mask)
    for y, x in inside[rng.integers(0, len(inside), holes)]:
        noisy[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = False
    return noisy

# SPDX-License-Identifier: Apache-2.0
"""Degradation of exact maps as in real captures: noise and bias of normals, irregular mask contours."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.hull import mask_distance_px

GRAZING_COSINE = 0.01
"""Least cosine between a noisy normal and the direction to the camera, because measured normals face the camera."""
_WAVES = 6
"""Number of waves that are added up to a smooth field."""


def smooth_fields(shape: tuple[int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    """Random smooth vector fields (H, W, count) of a few waves across the frame, with a root mean square length of one."""
    v, u = np.meshgrid(np.linspace(0, 1, shape[0]), np.linspace(0, 1, shape[1]), indexing="ij")
    frequency = rng.uniform(-3, 3, (2, count, _WAVES))
    phase = rng.uniform(0, 2 * np.pi, (count, _WAVES))
    amplitude = rng.standard_normal((count, _WAVES))
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
    """Add independent noise in each pixel and a smooth bias over the frame to the normals of one view.

    Args:
        normals: (H, W, 3) unit length on the mask, camera axes.
        view_rays: (H, W, 3) unit directions of the pixel rays, same axes.
        mask: (H, W) bool; other pixels stay unchanged.
        noise_deg: root mean square angle between clean and noisy normals, in degrees.
        bias_deg: root mean square angle of the smooth field of rotations, in degrees.
        rng: random generator.

    Returns:
        Normals (H, W, 3) that face the camera, same dtype.
    """
    height, width = mask.shape
    bias = np.deg2rad(bias_deg) * smooth_fields((height, width), 3, rng)[mask]
    n = Rotation.from_rotvec(bias).apply(normals[mask].astype(np.float64))
    rays = view_rays[mask]
    # Rotations about axes perpendicular to the normal: Gaussian in the tangent plane, half the variance along each axis.
    tilt = rng.standard_normal((height, width, 3))[mask] * np.deg2rad(noise_deg) / np.sqrt(2)
    n = Rotation.from_rotvec(tilt - (tilt * n).sum(-1, keepdims=True) * n).apply(n)
    along_ray = (n * rays).sum(-1)
    averted = along_ray > -GRAZING_COSINE
    across = n[averted] - along_ray[averted, None] * rays[averted]
    across *= np.sqrt(1 - GRAZING_COSINE**2) / np.linalg.norm(across, axis=-1, keepdims=True)
    n[averted] = across - GRAZING_COSINE * rays[averted]
    out = normals.copy()
    out[mask] = n
    return out


def disturb_mask(mask: np.ndarray, noise_px: float, rng: np.random.Generator, holes: int = 4) -> np.ndarray:
    """Displace the contour of a mask smoothly by noise_px pixels (root mean square) and cut a few holes of 3x3 pixels."""
    displacement = gaussian_filter(rng.standard_normal(mask.shape), 2.0)
    noisy = mask_distance_px(mask) - noise_px * displacement / displacement.std() < 0
    inside = np.argwhere(mask)
    for y, x in inside[rng.integers(0, len(inside), holes)]:
        noisy[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = False
    return noisy

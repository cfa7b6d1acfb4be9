# SPDX-License-Identifier: Apache-2.0
"""Pose ambiguity by symmetry: rotations that map a shape onto itself, which normals and masks cannot tell apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.interpolation import lookup_volume
from pmni_nerfstudio.registration.surface.sdf_grid import Surface

_POINTS = 600
_MAX_DISTANCE_VOXELS, _MAX_CHORD = 2.0, 0.5
"""Thresholds at which a rotated surface point matches the surface: distance, and chord between the normals (29 degrees).
The mismatch of registered shapes is 3 to 7% for a sphere (the more, the lower the resolution of the views), 7% for a
fluted vase with a handle, and 17% or more for others."""
_COARSE_ANGLES_DEG = (30.0, 45.0, 60.0, 72.0, 90.0, 120.0, 144.0, 180.0)


@dataclass(frozen=True, eq=False)
class Symmetry:
    """Rotation about the shape's center that maps the shape onto itself."""

    axis: Float[np.ndarray, " 3"]
    """Unit vector in world coordinates."""
    angle_deg: float
    mismatch: float
    """Fraction of the surface that the rotation does not map onto the surface."""
    continuous: bool
    """Whether any angle will do, judged by less than half of it."""

    def describe(self) -> str:
        """Describe the symmetry in words."""
        axis = ", ".join(f"{a:.2f}" for a in self.axis)
        rotation = "any rotation" if self.continuous else f"a rotation by {self.angle_deg:.0f} deg"
        return f"{rotation} about the axis ({axis}) maps the shape onto itself"


@dataclass(frozen=True, eq=False)
class _Samples:
    """Points and unit normals sampled on a surface, and their mean."""

    surface: Surface
    points: Float[np.ndarray, "p 3"]
    normals: Float[np.ndarray, "p 3"]
    center: Float[np.ndarray, " 3"]

    def mismatch(self, rotvec: Float[np.ndarray, " 3"], max_distance: float, max_chord: float) -> float:
        """Fraction of rotated points too far from the surface, or whose normals differ too much from its normals."""
        rotation = Rotation.from_rotvec(rotvec).as_matrix()
        points, normals = (self.points - self.center) @ rotation.T + self.center, self.normals @ rotation.T
        values = lookup_volume(self.surface.lookups, points)
        length = np.maximum(np.linalg.norm(values[:, 1:], axis=1), 1e-6)
        chord = np.linalg.norm(values[:, 1:] / length[:, None] - normals, axis=1)
        return float(((np.abs(values[:, 0]) > max_distance) | (chord > max_chord)).mean())

    def refined(self, rotvec: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " 3"]:
        """Rotation vector refined by robust Gauss-Newton steps on the rotated points' distances to the surface."""
        rotation = Rotation.from_rotvec(rotvec)
        shift = self.center.copy()
        for _ in range(15):
            points = (self.points - self.center) @ rotation.as_matrix().T + shift
            values = lookup_volume(self.surface.lookups, points).astype(np.float64)
            gradient = values[:, 1:]
            weight = 1 / (1 + (values[:, 0] / (3 * self.surface.voxel)) ** 2)
            jacobian = np.concatenate([np.cross(points - shift, gradient), gradient], axis=1)
            system = (jacobian * weight[:, None]).T @ jacobian
            # Damping: rotations of a round shape are unobservable, and far from the surface the gradient is zero.
            system += (1e-3 * np.trace(system) / 6 + 1e-6) * np.eye(6)
            step = -np.linalg.solve(system, (jacobian * weight[:, None]).T @ values[:, 0])
            rotation = Rotation.from_rotvec(step[:3]) * rotation
            shift = shift + step[3:]
        return rotation.as_rotvec()


def find_symmetry(surface: Surface, tolerance: float = 0.08, seed: int = 0) -> Symmetry | None:
    """Find the rotation by at least 25 degrees that best maps a surface onto itself.

    Rotations about a few hundred axes, by the angles of symmetries of order 2 to 6 and others, are scored; the best are
    refined.

    Args:
        surface: registered surface.
        tolerance: largest mismatch of a symmetry: the fraction of the surface that may differ (a logo on a bottle).
        seed: seed of the surface points.

    Returns:
        The symmetry, or None if the shape has none.
    """
    points, normals = surface.samples(_POINTS, np.random.default_rng(seed))
    samples = _Samples(surface, points, normals, points.mean(axis=0))
    size = float(np.linalg.norm(points - samples.center, axis=1).max())
    axes = _candidate_axes(points - samples.center)
    candidates = [np.deg2rad(angle) * axis for axis in axes for angle in _COARSE_ANGLES_DEG]
    coarse_distance = 0.04 * size + surface.voxel  # coarse rotations are off by some degrees
    scores = np.array([samples.mismatch(rotvec, coarse_distance, 0.6) for rotvec in candidates])
    max_distance = _MAX_DISTANCE_VOXELS * surface.voxel
    mismatch, best = 1.0, np.zeros(3)
    for index in np.argsort(scores, kind="stable")[:12]:
        rotvec = samples.refined(candidates[index])
        if np.linalg.norm(rotvec) < np.deg2rad(25):
            continue
        score = samples.mismatch(rotvec, max_distance, _MAX_CHORD)
        if score < mismatch:
            mismatch, best = score, rotvec
    if mismatch > tolerance:
        return None
    continuous = samples.mismatch(0.43 * best, max_distance, _MAX_CHORD) <= 2 * tolerance
    angle = float(np.linalg.norm(best))
    return Symmetry(best / angle, float(np.rad2deg(angle)), mismatch, continuous)


def _candidate_axes(points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "a 3"]:
    """Principal axes of the points, and 300 axes spread evenly over the half sphere."""
    principal = np.linalg.svd(points, full_matrices=False)[2]
    k = np.arange(300) + 0.5
    z, azimuth = k / 300, np.pi * (1 + 5**0.5) * k
    radius = np.sqrt(1 - z**2)
    spread = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1)
    return np.concatenate([principal, spread])

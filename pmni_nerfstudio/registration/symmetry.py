# SPDX-License-Identifier: Apache-2.0
"""Turns that map a shape onto itself: about these, normals and masks can't tell one pose from another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.interpolation import lookup_volume
from pmni_nerfstudio.registration.surface.sdf_grid import Surface

_POINTS = 600
_REACH_VOXELS, _CHORD = 2.0, 0.5
"""A turned point finds itself again if it is this near to the surface and its normal differs by no more than 29 degrees:
a registered sphere has 3% of points that don't, a fluted vase with a handle 7%, other shapes from 17%."""
_COARSE_ANGLES_DEG = (30.0, 45.0, 60.0, 72.0, 90.0, 120.0, 144.0, 180.0)


@dataclass(frozen=True, eq=False)
class Symmetry:
    """A turn about the shape's middle that leaves it as it is."""

    axis: Float[np.ndarray, " 3"]
    """Unit, world."""
    angle_deg: float
    mismatch: float
    """Share of the surface that does not find itself again."""
    continuous: bool
    """Whether half the angle does as well: then any does."""

    def describe(self) -> str:
        """In words."""
        axis = ", ".join(f"{a:.2f}" for a in self.axis)
        turn = "any turn" if self.continuous else f"a turn by {self.angle_deg:.0f} deg"
        return f"{turn} about the axis ({axis}) maps the shape onto itself"


def find_symmetry(surface: Surface, tolerance: float = 0.065, seed: int = 0) -> Symmetry | None:
    """The turn of at least 30 degrees that maps the surface best onto itself, if it does at all.

    Turns about a few hundred axes are tried by the angles that a symmetry of order 2 to 6, or a round shape, must
    have one of; the best are refined.

    Args:
        surface: that was registered.
        tolerance: share of the surface that may differ (a logo on a bottle).
        seed: of the points.
    """
    points, normals = surface.samples(_POINTS, np.random.default_rng(seed))
    centre = points.mean(axis=0)
    size = float(np.linalg.norm(points - centre, axis=1).max())
    axes = _axes(points - centre)
    turns = [np.deg2rad(angle) * axis for axis in axes for angle in _COARSE_ANGLES_DEG]
    reach = 0.04 * size + surface.voxel  # a coarse turn is off by some degrees
    scores = np.array([_mismatch(surface, points, normals, centre, turn, reach, 0.6) for turn in turns])
    best: tuple[float, np.ndarray] = (1.0, np.zeros(3))
    for start in np.argsort(scores, kind="stable")[:12]:
        turn = _refined(surface, points, normals, centre, turns[start])
        if np.linalg.norm(turn) < np.deg2rad(25):
            continue
        score = _mismatch(surface, points, normals, centre, turn, _REACH_VOXELS * surface.voxel, _CHORD)
        if score < best[0]:
            best = (score, turn)
    mismatch, turn = best
    if mismatch > tolerance:
        return None
    half = _mismatch(surface, points, normals, centre, 0.43 * turn, _REACH_VOXELS * surface.voxel, _CHORD)
    angle = float(np.linalg.norm(turn))
    return Symmetry(turn / angle, float(np.rad2deg(angle)), mismatch, bool(half <= 2 * tolerance))


def _axes(points: np.ndarray) -> np.ndarray:
    """Principal axes and a few hundred more spread over a half sphere."""
    principal = np.linalg.svd(points, full_matrices=False)[2]
    k = np.arange(300) + 0.5
    z, around = k / 300, np.pi * (1 + 5**0.5) * k
    across = np.sqrt(1 - z**2)
    spread = np.stack([across * np.cos(around), across * np.sin(around), z], axis=1)
    return np.concatenate([principal, spread])


def _turned(points: np.ndarray, normals: np.ndarray, centre: np.ndarray, turn: np.ndarray):
    rotation = Rotation.from_rotvec(turn).as_matrix()
    return (points - centre) @ rotation.T + centre, normals @ rotation.T


def _mismatch(
    surface: Surface,
    points: np.ndarray,
    normals: np.ndarray,
    centre: np.ndarray,
    turn: np.ndarray,
    reach: float,
    chord: float,
) -> float:
    """Share of turned points farther than `reach` from the surface, or whose normals differ by more than `chord`."""
    at, turned = _turned(points, normals, centre, turn)
    found = lookup_volume(surface.lookups, at)
    length = np.maximum(np.linalg.norm(found[:, 1:], axis=1), 1e-6)
    off = np.linalg.norm(found[:, 1:] / length[:, None] - turned, axis=1)
    return float(((np.abs(found[:, 0]) > reach) | (off > chord)).mean())


def _refined(
    surface: Surface, points: np.ndarray, normals: np.ndarray, centre: np.ndarray, turn: np.ndarray
) -> np.ndarray:
    """Gauss-Newton on the turned points' distances, robust."""
    rotation = Rotation.from_rotvec(turn)
    shift = centre.copy()
    for _ in range(15):
        at = (points - centre) @ rotation.as_matrix().T + shift
        found = lookup_volume(surface.lookups, at).astype(np.float64)
        gradient = found[:, 1:]
        weight = 1 / (1 + (found[:, 0] / (3 * surface.voxel)) ** 2)
        jacobian = np.concatenate([np.cross(at - shift, gradient), gradient], axis=1)
        system = (jacobian * weight[:, None]).T @ jacobian
        # A round shape has turns that cost nothing, and far from the surface no distance has a slope.
        system += (1e-3 * np.trace(system) / 6 + 1e-6) * np.eye(6)
        step = -np.linalg.solve(system, (jacobian * weight[:, None]).T @ found[:, 0])
        rotation = Rotation.from_rotvec(step[:3]) * rotation
        shift = shift + step[3:]
    return rotation.as_rotvec()

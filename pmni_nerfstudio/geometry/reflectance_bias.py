# SPDX-License-Identifier: Apache-2.0
"""Reflectance bias of normals: an error that depends only on the angle between normal and viewing direction.

Photometric stereo that assumes Lambertian reflectance tilts the normals of glossy surfaces away from the viewer, by one
curve for the whole material. On path-traced images of rough plastic the curve reached 5 degrees, nearly the same on every
shape, and a common elevation of all cameras absorbed it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float
from scipy.interpolate import BSpline

from pmni_nerfstudio.geometry.cameras import pixel_directions, pixel_grid

_KNOTS_DEG = (0.0, 10.0, 20.0, 35.0, 50.0, 70.0, 90.0)
_DEGREE = 2
COEFFICIENTS = len(_KNOTS_DEG) + _DEGREE - 2
"""Number of coefficients: those of a quadratic spline through zero at angle zero, where the tilt has no direction."""
_TABLE_STEP_DEG = 0.25


@cache
def _table() -> Float[np.ndarray, "a c"]:
    """The basis functions at multiples of `_TABLE_STEP_DEG` from 0 to 90 degrees."""
    knots = np.r_[[_KNOTS_DEG[0]] * _DEGREE, _KNOTS_DEG, [_KNOTS_DEG[-1]] * _DEGREE]
    angles = np.linspace(0.0, 90.0, round(90 / _TABLE_STEP_DEG) + 1)
    return BSpline.design_matrix(angles, knots, _DEGREE).toarray()[:, 1:]


def basis(angle: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b c"]:
    """Values of the basis functions at angles in radians; constant beyond 90 degrees."""
    table = _table()
    position = (np.rad2deg(angle) / _TABLE_STEP_DEG).clip(0, len(table) - 1)
    lower = np.minimum(position.astype(int), len(table) - 2)
    weight = (position - lower)[..., None]
    return table[lower] * (1 - weight) + table[lower + 1] * weight


def roughness_penalty() -> Float[np.ndarray, "c c"]:
    """Sum of the squared second differences of the coefficients, as a quadratic form."""
    second = np.diff(np.eye(COEFFICIENTS + 1), 2, axis=0)[:, 1:]
    return second.T @ second


@dataclass(frozen=True)
class ReflectanceBias:
    """A curve f: observed normals lean away from the viewer by f(angle to the viewing direction).

    The angle is that of the observed normal, so that the curve can be removed from observations.
    """

    coefficients: tuple[float, ...] = (0.0,) * COEFFICIENTS
    """Coefficients of `basis`, in radians."""

    @property
    def is_zero(self) -> bool:
        """Whether nothing is removed."""
        return not any(self.coefficients)

    def at(self, angle: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
        """The curve in radians, at angles in radians."""
        return basis(angle) @ np.array(self.coefficients)

    def removed(
        self, normals: Float[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"], K: Float[np.ndarray, "3 3"]
    ) -> Float[np.ndarray, "h w 3"]:
        """A normal map without the bias, of the same type; the map itself if there is no bias.

        Args:
            normals: unit normals, OpenCV camera axes.
            valid: pixels with a normal; the others are left as they are.
            K: intrinsics in pixels.
        """
        if self.is_zero:
            return normals
        out, to_view = normals.copy(), directions_to_viewer(valid, K)
        out[valid] = tilted(normals[valid].astype(np.float64), to_view, np.array(self.coefficients))[0]
        return out


def directions_to_viewer(pixels: Bool[np.ndarray, "h w"], K: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "p 3"]:
    """Unit directions from the selected pixels to the viewer, OpenCV camera axes, in row-major order."""
    height, width = pixels.shape
    directions = -pixel_directions(K, pixel_grid(width, height)[pixels])
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def tilted(
    normals: Float[np.ndarray, "p 3"], to_view: Float[np.ndarray, "p 3"], coefficients: Float[np.ndarray, " c"]
) -> tuple[Float[np.ndarray, "p 3"], Float[np.ndarray, "p 3 c"]]:
    """Normals tilted toward the viewer by a curve at their own angle, and the derivatives by its coefficients.

    Args:
        normals: unit normals.
        to_view: unit directions to the viewer, in the same axes.
        coefficients: coefficients of `basis`, in radians.
    """
    cosine = (normals * to_view).sum(axis=1, keepdims=True).clip(-1, 1)
    outward = (normals * cosine - to_view) / np.sqrt(np.maximum(1 - cosine**2, 1e-8))
    functions = basis(np.arccos(cosine[:, 0]))
    tilt = (functions @ coefficients)[:, None]
    changed = normals * np.cos(tilt) - outward * np.sin(tilt)
    derivative = -(normals * np.sin(tilt) + outward * np.cos(tilt))
    return changed, derivative[:, :, None] * functions[:, None, :]

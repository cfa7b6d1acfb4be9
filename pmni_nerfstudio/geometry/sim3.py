# SPDX-License-Identifier: Apache-2.0
"""Batches of similarities, Sim(3), with inverse, composition, retraction and adjoint; rotation grids and angles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.transforms import nearest_rotation


@dataclass(frozen=True, eq=False)
class Sim3:
    """Similarities x -> s R x + t, one for each of n views (or candidates), in double precision."""

    R: Float[np.ndarray, "n 3 3"]
    t: Float[np.ndarray, "n 3"]
    s: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.s)

    def __getitem__(self, index) -> Sim3:
        """A subset, selected by an index array, boolean mask or slice."""
        return Sim3(self.R[index], self.t[index], self.s[index])

    def inverse(self) -> Sim3:
        """Inverse similarities."""
        R = np.swapaxes(self.R, 1, 2)
        s = 1 / self.s
        return Sim3(R, -s[:, None] * np.einsum("nij,nj->ni", R, self.t), s)

    def compose(self, first: Sim3) -> Sim3:
        """Compositions self * first, element by element: `first` is applied first."""
        moved = self.s[:, None] * np.einsum("nij,nj->ni", self.R, first.t) + self.t
        return Sim3(self.R @ first.R, moved, self.s * first.s)

    def retract(self, delta: Float[np.ndarray, "n 7"]) -> Sim3:
        """Right-multiply by twists (omega, nu, sigma): to first order x -> x + omega x x + nu + sigma x before self.

        Args:
            delta: rotation vector in radians, translation, and logarithm of the scale.
        """
        # Rounding errors of repeated products would accumulate.
        R = nearest_rotation(self.R @ Rotation.from_rotvec(delta[:, :3]).as_matrix())
        t = self.t + self.s[:, None] * np.einsum("nij,nj->ni", self.R, delta[:, 3:6])
        return Sim3(R, t, self.s * np.exp(delta[:, 6]))

    def replaced(self, index: int | Int[np.ndarray, " k"], other: Sim3) -> Sim3:
        """A copy in which the similarities at one or more indices are replaced by those of `other`."""
        index = np.atleast_1d(index)
        R, t, s = self.R.copy(), self.t.copy(), self.s.copy()
        R[index], t[index], s[index] = other.R, other.t, other.s
        return Sim3(R, t, s)

    def adjoint(self) -> Float[np.ndarray, "n 7 7"]:
        """Adjoint matrices Ad, which move a twist from the right of T to its left: T exp(a) = exp(Ad a) T."""
        out = np.zeros((len(self), 7, 7))
        out[:, :3, :3] = self.R
        out[:, 3:6, :3] = cross_matrix(self.t) @ self.R
        out[:, 3:6, 3:6] = self.s[:, None, None] * self.R
        out[:, 3:6, 6] = -self.t
        out[:, 6, 6] = 1
        return out


def cross_matrix(v: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3 3"]:
    """Cross-product matrices [v], with [v] x = v x x."""
    x, y, z = v.T
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)


def rotation_grid(count: int) -> Float[np.ndarray, "n 3 3"]:
    """Rotations spread evenly over SO(3), by super-Fibonacci spirals (Alexa, CVPR 2022)."""
    i = np.arange(count) + 0.5
    small, large = np.sqrt(i / count), np.sqrt(1 - i / count)
    alpha, beta = 2 * np.pi * i / np.sqrt(2), 2 * np.pi * i / 1.533751168755204288118041
    quaternions = np.stack(
        [small * np.sin(alpha), small * np.cos(alpha), large * np.sin(beta), large * np.cos(beta)], axis=1
    )
    return Rotation.from_quat(quaternions).as_matrix()


def angles_deg(a: Float[np.ndarray, "n 3 3"], b: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, " n"]:
    """Angles in degrees between pairs of rotations."""
    # The arc cosine of the trace has no accuracy below 0.01 degrees; the chord length has.
    chord = np.linalg.norm(a - b, axis=(-2, -1)) / np.sqrt(8)
    return np.degrees(2 * np.arcsin(np.clip(chord, 0, 1)))


def separated(
    rotations: Float[np.ndarray, "n 3 3"], costs: Float[np.ndarray, " n"], min_angle_deg: float, count: int
) -> list[int]:
    """Indices of the rotations of lowest cost, at most `count`, of which any two are further apart than an angle."""
    chosen: list[int] = []
    for k in np.argsort(costs, kind="stable"):
        if (angles_deg(rotations[[k]], rotations[chosen]) > min_angle_deg).all():
            chosen.append(int(k))
        if len(chosen) == count:
            break
    return chosen

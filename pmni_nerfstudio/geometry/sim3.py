# SPDX-License-Identifier: Apache-2.0
"""Similarities of views, one each: from the object's frame as a view believes it to the world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation


@dataclass(frozen=True, eq=False)
class Similarities:
    """x_world = s R x + t for each of n views (or candidates); float64."""

    R: Float[np.ndarray, "n 3 3"]
    t: Float[np.ndarray, "n 3"]
    s: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.s)

    def __getitem__(self, index) -> Similarities:
        """Some of them, by anything that indexes an axis of an array and keeps it."""
        return Similarities(self.R[index], self.t[index], self.s[index])

    def inverse(self) -> Similarities:
        """From the world back."""
        R = np.swapaxes(self.R, 1, 2)
        s = 1 / self.s
        return Similarities(R, -s[:, None] * np.einsum("nij,nj->ni", R, self.t), s)

    def compose(self, first: Similarities) -> Similarities:
        """These after the others, one by one."""
        moved = self.s[:, None] * np.einsum("nij,nj->ni", self.R, first.t) + self.t
        return Similarities(self.R @ first.R, moved, self.s * first.s)

    def retract(self, delta: Float[np.ndarray, "n 7"]) -> Similarities:
        """Moved by twists (omega, nu, sigma) in the views' own frames: x + omega x x + nu + sigma x, to first order."""
        R = self.R @ Rotation.from_rotvec(delta[:, :3]).as_matrix()
        u, _, vt = np.linalg.svd(R)  # products drift off the rotations, a little each
        t = self.t + self.s[:, None] * np.einsum("nij,nj->ni", self.R, delta[:, 3:6])
        return Similarities(u @ vt, t, self.s * np.exp(delta[:, 6]))

    def replaced(self, index: int, other: Similarities) -> Similarities:
        """The same, but for one of them, which is the only one of the other."""
        R, t, s = self.R.copy(), self.t.copy(), self.s.copy()
        R[index], t[index], s[index] = other.R[0], other.t[0], other.s[0]
        return Similarities(R, t, s)

    def adjoint(self) -> Float[np.ndarray, "n 7 7"]:
        """Matrices that take twists of the domain to twists of the range: T exp(a) = exp(Ad a) T."""
        out = np.zeros((len(self), 7, 7))
        out[:, :3, :3] = self.R
        out[:, 3:6, :3] = cross_matrix(self.t) @ self.R
        out[:, 3:6, 3:6] = self.s[:, None, None] * self.R
        out[:, 3:6, 6] = -self.t
        out[:, 6, 6] = 1
        return out


def cross_matrix(v: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3 3"]:
    """Matrices [v] with [v] x = v x x."""
    x, y, z = v.T
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)


def rotation_grid(count: int) -> Float[np.ndarray, "n 3 3"]:
    """Rotations spread evenly over all of them: super-Fibonacci spirals (Alexa, CVPR 2022)."""
    i = np.arange(count) + 0.5
    small, large = np.sqrt(i / count), np.sqrt(1 - i / count)
    alpha, beta = 2 * np.pi * i / np.sqrt(2), 2 * np.pi * i / 1.533751168755204288118041
    quaternions = np.stack(
        [small * np.sin(alpha), small * np.cos(alpha), large * np.sin(beta), large * np.cos(beta)], axis=1
    )
    return Rotation.from_quat(quaternions).as_matrix()


def angles_deg(a: Float[np.ndarray, "n 3 3"], b: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, " n"]:
    """Angles between rotations, one by one, in degrees."""
    # By the chord, not the trace's arc cosine, which knows nothing below a hundredth of a degree.
    chord = np.linalg.norm(a - b, axis=(-2, -1)) / np.sqrt(8)
    return np.degrees(2 * np.arcsin(np.clip(chord, 0, 1)))

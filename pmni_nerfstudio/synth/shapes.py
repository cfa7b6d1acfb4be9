# SPDX-License-Identifier: Apache-2.0
"""Procedural solids as signed distance functions, negative inside, within OBJECT_RADIUS of the origin, z up.

A shape is a function of points composed of a few primitives (Hart, "Sphere Tracing", 1996; Quilez, "Distance functions").
None has a symmetry that makes camera poses ambiguous, so that a reconstruction without poses has a unique solution; the
sphere is the exception, for tests with closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """A solid defined by a signed distance function, which may be inexact off the surface."""

    sdf: Callable[[Tensor], Tensor]
    """Values (...) at points (..., 3)."""
    slope: float
    """Bound of the values: |sdf(x)| <= slope * distance(x, surface)."""

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values (...) and exact gradients (..., 3) at points x (..., 3), both detached."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            value = self.sdf(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient


# ---- primitives: values (...) at points (..., 3), slope 1 unless noted


def length(x: Tensor) -> Tensor:
    """Euclidean norm over the last axis, with a gradient of zero at zero."""
    return torch.linalg.vector_norm(x, dim=-1)


def ball(p: Tensor, center: tuple[float, float, float], radius: float) -> Tensor:
    """A ball."""
    return length(p - p.new_tensor(center)) - radius


def limb(p: Tensor, a: tuple[float, float, float], b: tuple[float, float, float], ra: float, rb: float) -> Tensor:
    """A capsule from a to b whose radius changes linearly from ra to rb; its slope is sqrt(1 + ((ra - rb) / |ab|)^2)."""
    start, axis = p.new_tensor(a), p.new_tensor(b) - p.new_tensor(a)
    along = (((p - start) @ axis) / (axis @ axis)).clamp(0, 1)
    return length(p - start - along[..., None] * axis) - (ra + (rb - ra) * along)


def box(
    p: Tensor, center: tuple[float, float, float], half: tuple[float, float, float], rounding: float = 0.0
) -> Tensor:
    """A box with half side lengths `half`; rounding its edges keeps its size."""
    q = (p - p.new_tensor(center)).abs() - p.new_tensor(half) + rounding
    inside = q.amax(dim=-1)
    # A sum of both clamped terms, as usual, would have a gradient of zero on the faces.
    return torch.where(inside > 0, length(q.clamp(min=0)), inside) - rounding


def cylinder(p: Tensor, center: tuple[float, float, float], axis: int, radius: float, half: float) -> Tensor:
    """A cylinder along coordinate axis 0, 1 or 2."""
    q = p - p.new_tensor(center)
    across = length(q[..., [i for i in range(3) if i != axis]]) - radius
    return torch.maximum(across, q[..., axis].abs() - half)


def torus(p: Tensor, center: tuple[float, float, float], axis: int, radius: float, tube: float) -> Tensor:
    """A torus around coordinate axis 0, 1 or 2."""
    q = p - p.new_tensor(center)
    across = length(q[..., [i for i in range(3) if i != axis]]) - radius
    return length(torch.stack([across, q[..., axis]], dim=-1)) - tube


def half_space(p: Tensor, normal: tuple[float, float, float], offset: float) -> Tensor:
    """The points with normal . p <= offset; the normal need not have unit length."""
    n = p.new_tensor(normal)
    return (p @ n - offset) / length(n)


def union(*parts: Tensor) -> Tensor:
    """Sharp union."""
    return reduce(torch.minimum, parts)


def intersection(*parts: Tensor) -> Tensor:
    """Sharp intersection."""
    return reduce(torch.maximum, parts)


def smooth_union(k: float, *parts: Tensor) -> Tensor:
    """Union with creases filled over a width k; its gradient is a convex combination of the parts', so slopes are kept."""

    def blend(a: Tensor, b: Tensor) -> Tensor:
        overlap = (k - (a - b).abs()).clamp(min=0)
        return torch.minimum(a, b) - overlap * overlap / (4 * k)

    return reduce(blend, parts)


# ---- shapes


def sphere_sdf(p: Tensor) -> Tensor:
    """A ball of radius 0.8."""
    return length(p) - 0.8


def blob_sdf(p: Tensor) -> Tensor:
    """A smooth lump with bumps of two sizes."""
    lump = smooth_union(
        0.25,
        ball(p, (0.0, 0.0, -0.1), 0.55),
        ball(p, (0.42, 0.1, 0.25), 0.33),
        ball(p, (-0.3, 0.38, 0.2), 0.3),
        ball(p, (-0.1, -0.45, 0.05), 0.31),
        ball(p, (-0.35, -0.05, 0.45), 0.25),
        ball(p, (0.25, 0.3, -0.5), 0.22),
    )
    x, y, z = p.unbind(-1)
    ripples = torch.sin(10 * x + 1) * torch.sin(9 * y + 2) * torch.sin(11 * z)
    return lump - 0.03 * ripples - 0.006 * torch.sin(23 * (x + 0.5 * y)) * torch.sin(21 * (z - 0.4 * x))


def knot_sdf(p: Tensor) -> Tensor:
    """A trefoil knot: a ribbed tube, thicker on one side, that winds twice around the axis and thrice around a torus."""
    x, y, z = p.unbind(-1)
    around = torch.atan2(y, x)
    across = length(p[..., :2])
    offset = torch.stack([across - 0.52, z], dim=-1)
    strands = []
    for turn in range(2):  # the half-plane at this angle cuts the tube twice
        along = (around + 2 * math.pi * turn) / 2
        center = 0.25 * torch.stack([torch.cos(3 * along), torch.sin(3 * along)], dim=-1)
        tube = 0.115 + 0.025 * torch.cos(along * 2 + 0.5) + 0.01 * torch.sin(18 * along)
        strands.append(length(offset - center) - tube)
    # The half-plane cuts the tube obliquely, more so near the axis; distances within it are too long by this factor.
    return union(*strands) / torch.sqrt(1 + (0.375 / across.clamp(min=0.1)) ** 2)


def bracket_sdf(p: Tensor) -> Tensor:
    """A machined bracket with flat faces, sharp edges, bores of several sizes, a rib and a boss."""
    scale = 0.92
    p = p / scale
    plate = box(p, (0.0, 0.0, -0.42), (0.62, 0.46, 0.09))
    wall = box(p, (-0.52, 0.0, 0.1), (0.1, 0.46, 0.5))
    rib = intersection(
        box(p, (-0.1, -0.2, 0.0), (0.42, 0.06, 0.42)),
        half_space(p, (0.75, 0.0, 0.65), 0.02),
    )
    boss = cylinder(p, (0.3, 0.18, -0.22), 2, 0.2, 0.18)
    step = box(p, (-0.42, 0.28, 0.47), (0.1, 0.18, 0.13))
    bores = union(
        cylinder(p, (0.3, 0.18, 0.0), 2, 0.11, 1.0),
        cylinder(p, (-0.52, -0.08, 0.24), 0, 0.19, 0.3),
        cylinder(p, (0.45, -0.32, -0.4), 2, 0.08, 0.3),
        cylinder(p, (0.1, -0.32, -0.4), 2, 0.05, 0.3),
        box(p, (-0.1, 0.46, -0.42), (0.13, 0.14, 0.3)),
    )
    corner = half_space(p, (-1.0, 1.0, 0.0), 0.86)
    return scale * intersection(union(plate, wall, rib, boss, step), -bores, corner)


_SHOULDER = (0.0, 0.2, 0.36)
"""Left shoulder of the figure."""


def _raised(joint: tuple[float, float, float], degrees: float) -> tuple[float, float, float]:
    """A joint of the figure's left arm, rotated about the shoulder in the plane x = const."""
    y, z = joint[1] - _SHOULDER[1], joint[2] - _SHOULDER[2]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return joint[0], _SHOULDER[1] + cos * y - sin * z, _SHOULDER[2] + sin * y + cos * z


def figure_sdf(p: Tensor, arm_deg: float = 0.0) -> Tensor:
    """A walking figure with one arm raised and one on the hip, a face, and folds in its coat.

    Args:
        p: points (..., 3).
        arm_deg: rotation of the raised arm about its shoulder, upwards, in degrees; from -80 to 40.
    """
    scale = 0.94
    p = p / scale + p.new_tensor((0.01, 0.05, -0.05))
    z = p[..., 2]
    coat = limb(p, (0.0, 0.0, 0.28), (0.02, 0.0, -0.22), 0.17, 0.24)
    folds = 0.012 * torch.sin(20 * p[..., 1] + 9 * p[..., 0] + 4 * torch.sin(6 * z)) * torch.sigmoid(-14 * (z + 0.02))
    head = smooth_union(
        0.05,
        ball(p, (0.03, 0.0, 0.66), 0.15),
        ball(p, (0.17, 0.0, 0.64), 0.035),
        limb(p, (-0.1, 0.0, 0.72), (-0.2, 0.03, 0.5), 0.07, 0.03),
        ball(p, (0.03, 0.15, 0.66), 0.035),
        ball(p, (0.03, -0.15, 0.66), 0.035),
    )
    elbow, wrist, hand = (
        _raised(joint, arm_deg) for joint in ((0.06, 0.44, 0.42), (0.16, 0.52, 0.66), (0.17, 0.53, 0.69))
    )
    eyes = union(ball(p, (0.18, 0.06, 0.7), 0.03), ball(p, (0.18, -0.06, 0.7), 0.03))
    return scale * smooth_union(
        0.06,
        coat - folds,
        intersection(head, -eyes),
        limb(p, (0.0, 0.0, 0.4), (0.02, 0.0, 0.55), 0.08, 0.07),
        limb(p, _SHOULDER, elbow, 0.085, 0.065),  # left arm, raised
        limb(p, elbow, wrist, 0.065, 0.05),
        ball(p, hand, 0.07),
        limb(p, (0.0, -0.2, 0.36), (-0.12, -0.42, 0.14), 0.085, 0.065),  # right arm, on the hip
        limb(p, (-0.12, -0.42, 0.14), (0.1, -0.27, -0.02), 0.065, 0.05),
        limb(p, (0.05, 0.11, -0.3), (0.24, 0.14, -0.56), 0.11, 0.08),  # left leg, forward
        limb(p, (0.24, 0.14, -0.56), (0.2, 0.14, -0.84), 0.08, 0.055),
        limb(p, (0.18, 0.14, -0.85), (0.33, 0.16, -0.85), 0.055, 0.045),
        limb(p, (0.0, -0.11, -0.3), (-0.08, -0.14, -0.6), 0.11, 0.08),  # right leg, back
        limb(p, (-0.08, -0.14, -0.6), (-0.28, -0.15, -0.8), 0.08, 0.055),
        limb(p, (-0.29, -0.15, -0.83), (-0.16, -0.17, -0.86), 0.055, 0.045),
    )


def moving_figure(frames: int) -> list[Shape]:
    """The figure at several moments, while it raises its arm by 120 degrees in all."""
    step = 120 / max(frames - 1, 1)
    return [Shape(partial(figure_sdf, arm_deg=-80 + step * frame), 1.4) for frame in range(frames)]


def vase_sdf(p: Tensor) -> Tensor:
    """A hollow vase with flutes, a handle, and a medallion on another side."""
    x, y, z = p.unbind(-1)
    across = length(p[..., :2])
    # Flutes fade towards the axis, where the angle changes arbitrarily fast.
    flutes = (
        0.012 * torch.cos(14 * torch.atan2(y, x)) * across**2 / (across**2 + 0.02) * torch.exp(-10 * (z + 0.2) ** 2)
    )
    profile = 0.34 + 0.13 * torch.sin(3.4 * z + 2.4) + 0.05 * torch.cos(7.0 * z)
    body = intersection(across - profile - flutes, z.abs() - 0.78)
    handle = torus(p, (0.0, 0.38, 0.18), 0, 0.26, 0.055)
    medallion = smooth_union(0.03, ball(p, (0.36, -0.24, -0.2), 0.13), ball(p, (0.47, -0.3, -0.2), 0.05))
    hollow = intersection(across - profile + 0.07, -0.68 - z)
    return intersection(smooth_union(0.05, body, handle, medallion), -hollow)


SHAPES: dict[str, Shape] = {
    "blob": Shape(blob_sdf, 1.5),
    "knot": Shape(knot_sdf, 1.4),
    "bracket": Shape(bracket_sdf, 1.0),
    "figure": Shape(figure_sdf, 1.4),
    "vase": Shape(vase_sdf, 1.5),
    "sphere": Shape(sphere_sdf, 1.0),
}

# SPDX-License-Identifier: Apache-2.0
"""Points of one relief laid onto another: how far normals, depths and outlines disagree, and the derivatives of that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pmni_nerfstudio.geometry.sim3 import Similarities
from pmni_nerfstudio.registration.levenberg_marquardt import Linearization
from pmni_nerfstudio.registration.pairwise.integrated_depth import ReliefLevel, facing_weight

_CHUNK = 1 << 14
"""Points at a time: what belongs to them stays in the cache."""


@dataclass(frozen=True)
class Kernels:
    """Geman-McClure kernels r^2 / (r^2 + width^2), and what they weigh."""

    normal: float = 0.2
    """Width for differences of unit normals."""
    depth: float = 0.1
    """Width for distances of points from planes, object radii."""
    outline: float = 0.1
    """Width for distances of points beyond the outline, object radii."""
    outline_weight: float = 0.5
    """Of outlines beside normals."""


@dataclass(frozen=True, eq=False)
class PairTerms:
    """What q pairs of views come to; `loss / weight` is their cost, from 0 to 1."""

    loss: Float[np.ndarray, " q"]
    weight: Float[np.ndarray, " q"]
    inliers: Float[np.ndarray, " q"]
    """Share of the points that the target should see whose normals agree to within the kernel's width."""
    hessian: Float[np.ndarray, "q 7 7"] | None
    """Of the loss, by a twist in the target's frame."""
    gradient: Float[np.ndarray, "q 7"] | None


def pair_terms(
    level: ReliefLevel,
    source: Int[np.ndarray, " q"],
    target: Int[np.ndarray, " q"],
    relative: Similarities,
    kernels: Kernels,
    derivatives: bool = True,
) -> PairTerms:
    """Lay the points of source views onto target views.

    A point that faces the target and falls on its mask has a difference of normals and a distance from the target's
    tangent plane; one that faces it and falls beside the mask counts as much as the kernels ever say. Whether it
    faces the target or not, no point may fall beside the mask: its distance from the outline counts, too. What falls
    off the frame is unknown, and doesn't count.

    Args:
        level: the reliefs.
        source: views whose points are moved.
        target: views that they are laid onto.
        relative: from the sources' object frames to the targets'.
        kernels: widths and weights.
        derivatives: whether Hessians and gradients are wanted.
    """
    step = max(1, _CHUNK // level.points.shape[1])
    parts = [
        _chunk_terms(level, source[k : k + step], target[k : k + step], relative[k : k + step], kernels, derivatives)
        for k in range(0, len(source), step)
    ]
    loss, weight, inliers, *rest = (torch.cat(column).double().numpy() for column in zip(*parts))
    hessian, gradient = rest if derivatives else (None, None)
    return PairTerms(loss, weight, inliers, hessian, gradient)


def _chunk_terms(
    level: ReliefLevel, source: np.ndarray, target: np.ndarray, relative: Similarities, k: Kernels, derivatives: bool
) -> tuple[Tensor, ...]:
    i, j = torch.from_numpy(source), torch.from_numpy(target)
    R = torch.from_numpy(relative.R).float().mT.contiguous()
    y = torch.bmm(level.points[i], torch.from_numpy(relative.s)[:, None, None].float() * R)
    y += torch.from_numpy(relative.t).float()[:, None]
    m = torch.bmm(level.normals[i], R)
    camera = y + level.centres[j][:, None]
    x_c, y_c, z_c = camera.unbind(-1)
    K = level.K[j][:, None]
    fx, skew, cx, fy, cy = K[..., 0, 0], K[..., 0, 1], K[..., 0, 2], K[..., 1, 1], K[..., 1, 2]
    inverse = 1 / z_c.clamp(min=1e-3)
    u = (fx * x_c + skew * y_c) * inverse + cx
    v = fy * y_c * inverse + cy
    inside = (u >= 0) & (u <= level.width - 1) & (v >= 0) & (v <= level.height - 1) & (z_c > 1e-3)
    value, along_u, along_v = _bilinear(level, j, u, v)
    n, z, outside = value[..., :3], value[..., 3], value[..., 4]

    # How much each point counts: for outlines, for being seen at all, and for what is compared where it is seen.
    present = level.weights[i] * inside
    expected = present * facing_weight(-(m * camera).sum(-1) * torch.rsqrt((camera * camera).sum(-1)))
    seen = expected * (-outside / level.pixel).clamp(0, 1)

    r_normal = m - n
    ray_x = (u - cx - skew * (v - cy) / fy) / fx
    ray_y = (v - cy) / fy
    surface = torch.stack([ray_x * z, ray_y * z, z], dim=-1)
    off = camera - surface
    r_depth = (n * off).sum(-1)
    r_outline = outside.clamp(min=0)
    square = (r_normal * r_normal).sum(-1)
    a, b, c = k.normal**2, k.depth**2, k.outline**2
    fit = 1 / (1 + square / a + r_depth**2 / b)
    loss = expected - seen * fit + k.outline_weight * present * (1 - c / (r_outline**2 + c))
    weight = expected + k.outline_weight * present
    agree = (seen * (square < a)).sum(-1) / expected.sum(-1).clamp(min=1e-6)
    sums = (loss.sum(-1), weight.sum(-1), agree)
    if not derivatives:
        return sums

    # Of u and v by the point, (q, p, 3) each.
    u_y = torch.stack([fx * inverse, skew * inverse, -(u - cx) * inverse], dim=-1)
    v_y = torch.stack([torch.zeros_like(u), fy * inverse, -(v - cy) * inverse], dim=-1)
    # Rows: three of the normal, the plane's distance, the outline's. The tangent plane moves with the point, along
    # itself (so that doesn't count) and by turning with the target's normals.
    bend_u, bend_v = (along_u[..., :3] * off).sum(-1), (along_v[..., :3] * off).sum(-1)
    by_u = torch.cat([-along_u[..., :3], bend_u[..., None], along_u[..., 4:]], dim=-1)
    by_v = torch.cat([-along_v[..., :3], bend_v[..., None], along_v[..., 4:]], dim=-1)
    by_point = by_u[..., None] * u_y[..., None, :] + by_v[..., None] * v_y[..., None, :]
    by_point[..., 3, :] += n
    residual = torch.cat([r_normal, r_depth[..., None], r_outline[..., None]], dim=-1)
    w_normal, w_depth = seen * fit**2 / a, seen * fit**2 / b
    w_outline = k.outline_weight * present * (outside > 0) * c / (r_outline**2 + c) ** 2
    root = torch.stack([w_normal, w_normal, w_normal, w_depth, w_outline], dim=-1).sqrt()
    jacobian = torch.empty(*by_point.shape[:-1], 7)
    p = y[..., None, :]
    jacobian[..., 0] = p[..., 1] * by_point[..., 2] - p[..., 2] * by_point[..., 1]
    jacobian[..., 1] = p[..., 2] * by_point[..., 0] - p[..., 0] * by_point[..., 2]
    jacobian[..., 2] = p[..., 0] * by_point[..., 1] - p[..., 1] * by_point[..., 0]
    jacobian[..., 3:6] = by_point
    jacobian[..., 6] = (by_point * p).sum(-1)
    m_x, m_y, m_z = m.unbind(-1)
    jacobian[..., 0, 1] += m_z
    jacobian[..., 0, 2] -= m_y
    jacobian[..., 1, 0] -= m_z
    jacobian[..., 1, 2] += m_x
    jacobian[..., 2, 0] += m_y
    jacobian[..., 2, 1] -= m_x
    jacobian *= root[..., None]
    rows = jacobian.flatten(1, 2)
    hessian = torch.bmm(rows.mT, rows)
    gradient = torch.bmm(rows.mT, (residual * root).flatten(1)[..., None])[..., 0]
    return (*sums, hessian, gradient)


def _bilinear(level: ReliefLevel, view: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values at pixels (q, p) of views (q,), and their derivatives along u and v: (q, p, 5) each."""
    left = u.clamp(0, level.width - 1.001).floor()
    top = v.clamp(0, level.height - 1.001).floor()
    du, dv = (u - left).clamp(0, 1)[..., None], (v - top).clamp(0, 1)[..., None]
    first = ((view[:, None] * level.height + top.long()) * level.width + left.long()).flatten()
    shape = (*u.shape, level.table.shape[1])
    nw, ne, sw, se = (
        level.table.index_select(0, first + offset).view(shape) for offset in (0, 1, level.width, level.width + 1)
    )
    north, south = torch.lerp(nw, ne, du), torch.lerp(sw, se, du)
    return torch.lerp(north, south, dv), torch.lerp(ne - nw, se - sw, dv), south - north


class PairwiseProblem:
    """Views' similarities that make pairs of them agree, for `solver.solve`; a state is a `Similarities`.

    The cost is the pairs' summed loss over their summed weight, so that nothing is won by seeing less of each other.

    Args:
        level: the reliefs at one resolution.
        pairs: (q, 2), source and target views.
        kernels: widths and weights.
        free: the views that move; all by default.
    """

    def __init__(
        self, level: ReliefLevel, pairs: Int[np.ndarray, "q 2"], kernels: Kernels, free: list[int] | None = None
    ) -> None:
        self.level, self.kernels = level, kernels
        self.source, self.target = np.ascontiguousarray(pairs.T)
        self.free = list(range(len(level.points))) if free is None else free
        self._column = np.full(len(level.points), -1)
        self._column[self.free] = np.arange(len(self.free))

    def has_pairs(self, pairs: Int[np.ndarray, "q 2"]) -> bool:
        """Whether it is made of just these pairs."""
        return np.array_equal(pairs, np.stack([self.source, self.target], axis=1))

    def terms(self, state: Similarities, derivatives: bool = True) -> tuple[PairTerms, Similarities]:
        """Of all pairs, and their relative similarities."""
        relative = state[self.target].inverse().compose(state[self.source])
        return pair_terms(self.level, self.source, self.target, relative, self.kernels, derivatives), relative

    def linearize(self, state: Similarities) -> Linearization:
        """Cost, gradient and Gauss-Newton Hessian by the free views' twists, each in its own frame."""
        terms, relative = self.terms(state)
        assert terms.hessian is not None and terms.gradient is not None
        total = max(float(terms.weight.sum()), 1e-9)
        # A twist a_i of the source and a_j of the target move the relative similarity by Ad a_i - a_j.
        chain = relative.adjoint()
        crossed = np.swapaxes(chain, 1, 2) @ terms.hessian
        count = len(self.free)
        blocks, gradient = np.zeros((count + 1, count + 1, 7, 7)), np.zeros((count + 1, 7))
        i, j = self._column[self.source], self._column[self.target]  # -1, the last, for views that stay
        np.add.at(blocks, (i, i), crossed @ chain)
        np.add.at(blocks, (j, j), terms.hessian)
        np.subtract.at(blocks, (i, j), crossed)
        np.subtract.at(blocks, (j, i), np.swapaxes(crossed, 1, 2))
        np.add.at(gradient, i, np.einsum("qab,qa->qb", chain, terms.gradient))
        np.subtract.at(gradient, j, terms.gradient)
        hessian = blocks[:count, :count].transpose(0, 2, 1, 3).reshape(7 * count, 7 * count)
        # The terms are those of r^2 / 2, and the kernels of r^2.
        scale = 2 / total
        return Linearization(scale * hessian, scale * gradient[:count].ravel(), float(terms.loss.sum()) / total)

    def retract(self, state: Similarities, delta: Float[np.ndarray, " p"]) -> Similarities:
        """The free views moved by their twists."""
        every = np.zeros((len(state), 7))
        every[self.free] = delta.reshape(-1, 7)
        return state.retract(every)

    def view_costs(self, state: Similarities) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Cost of each view over all pairs it is part of, and its share of inliers."""
        terms, _ = self.terms(state, derivatives=False)
        n = len(state)
        loss, weight, inliers, count = (np.zeros(n) for _ in range(4))
        for side in (self.source, self.target):
            np.add.at(loss, side, terms.loss)
            np.add.at(weight, side, terms.weight)
            np.add.at(inliers, side, terms.inliers)
            np.add.at(count, side, 1)
        return loss / np.maximum(weight, 1e-9), inliers / np.maximum(count, 1)

# SPDX-License-Identifier: Apache-2.0
"""Residuals between pairs of integrated depth maps (normals, depths, silhouettes) and their derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pmni_nerfstudio.geometry.sim3 import Sim3
from pmni_nerfstudio.registration.levenberg_marquardt import Linearization
from pmni_nerfstudio.registration.pairwise.integrated_depth import KNOWN, PyramidLevel, facing_weight

_CHUNK = 1 << 14
"""Points processed at a time, so that intermediate values stay in the cache."""


@dataclass(frozen=True)
class Kernels:
    """Widths of the Geman-McClure kernels r^2 / (r^2 + width^2), and the weight of silhouettes."""

    normal: float = 0.2
    """Width for differences between unit normals."""
    depth: float = 0.1
    """Width for point-to-plane distances, in object radii."""
    silhouette: float = 0.1
    """Width for distances of points outside the silhouette, in object radii."""
    silhouette_weight: float = 0.5
    """Weight of the silhouette term relative to that of normals and depths."""


@dataclass(frozen=True, eq=False)
class PairTerms:
    """Terms of q pairs of views. The cost of a pair is `loss / weight`, 0 to 1."""

    loss: Float[np.ndarray, " q"]
    weight: Float[np.ndarray, " q"]
    hessian: Float[np.ndarray, "q 7 7"] | None
    """Gauss-Newton Hessian of loss / 2 by a twist in the target's frame."""
    gradient: Float[np.ndarray, "q 7"] | None
    """Gradient of loss / 2 by the same twist."""


def pair_terms(
    level: PyramidLevel,
    source: Int[np.ndarray, " q"],
    target: Int[np.ndarray, " q"],
    relative: Sim3,
    kernels: Kernels,
    derivatives: bool = True,
) -> PairTerms:
    """Compare the points of source views with the maps of target views.

    A point that faces the target's camera is expected to be visible. Projected into the mask, it has a normal residual
    and a point-to-plane distance; outside the mask, it counts with the kernel's upper limit. Every point, facing or not,
    also has a silhouette residual: its distance outside the mask. Points that project outside the image are unknown and
    do not count. Points that project into a hole of the target count for the silhouette only.

    Args:
        level: maps and points.
        source: views whose points are transformed.
        target: views they are compared with.
        relative: similarities from the sources' object frames to the targets'.
        kernels: kernel widths and weights.
        derivatives: whether to compute Hessians and gradients.
    """
    step = max(1, _CHUNK // level.points.shape[1])
    parts = [
        _chunk_terms(level, source[k : k + step], target[k : k + step], relative[k : k + step], kernels, derivatives)
        for k in range(0, len(source), step)
    ]
    loss, weight, *rest = (torch.cat(column).double().numpy() for column in zip(*parts))
    hessian, gradient = rest if derivatives else (None, None)
    return PairTerms(loss, weight, hessian, gradient)


def gauss_newton_steps(
    hessian: Float[np.ndarray, "q 7 7"], gradient: Float[np.ndarray, "q 7"], max_norm: float
) -> Float[np.ndarray, "q 7"]:
    """Damped Gauss-Newton steps of q independent similarities, each shortened to a largest norm."""
    mean_diagonal = np.einsum("qii->q", hessian) / 7
    damped = hessian + (0.01 * mean_diagonal + 1e-6)[:, None, None] * np.eye(7)
    step = -np.linalg.solve(damped, gradient[..., None])[..., 0]
    return step * np.minimum(1, max_norm / np.maximum(np.linalg.norm(step, axis=1), 1e-9))[:, None]


def _chunk_terms(
    level: PyramidLevel, source: np.ndarray, target: np.ndarray, relative: Sim3, k: Kernels, derivatives: bool
) -> tuple[Tensor, ...]:
    """Loss and weight of some pairs, and Hessian and gradient if requested; one entry per pair."""
    i, j = torch.from_numpy(source), torch.from_numpy(target)
    R = torch.from_numpy(relative.R).float().mT.contiguous()
    y = torch.bmm(level.points[i], torch.from_numpy(relative.s)[:, None, None].float() * R)
    y += torch.from_numpy(relative.t).float()[:, None]
    m = torch.bmm(level.normals[i], R)
    camera = y + level.centers[j][:, None]
    x_c, y_c, z_c = camera.unbind(-1)
    K = level.K[j][:, None]
    fx, skew, cx, fy, cy = K[..., 0, 0], K[..., 0, 1], K[..., 0, 2], K[..., 1, 1], K[..., 1, 2]
    inverse = 1 / z_c.clamp(min=1e-3)
    u = (fx * x_c + skew * y_c) * inverse + cx
    v = fy * y_c * inverse + cy
    inside = (u >= 0) & (u <= level.width - 1) & (v >= 0) & (v <= level.height - 1) & (z_c > 1e-3)
    value, along_u, along_v = _bilinear(level, j, u, v)
    n, z, outside = value[..., :3], value[..., 3], value[..., 4]

    # Weights of each point: inside the image (silhouette), facing the camera (expected), and on the mask (visible).
    present = level.weights[i] * inside
    expected = present * facing_weight(-(m * camera).sum(-1) * torch.rsqrt((camera * camera).sum(-1)))
    if value.shape[-1] > KNOWN:
        expected = expected * value[..., KNOWN]
    visible = expected * (-outside / level.pixel).clamp(0, 1)

    r_normal = m - n
    ray_x = (u - cx - skew * (v - cy) / fy) / fx
    ray_y = (v - cy) / fy
    surface = torch.stack([ray_x * z, ray_y * z, z], dim=-1)
    offset = camera - surface
    r_depth = (n * offset).sum(-1)
    r_silhouette = outside.clamp(min=0)
    square = (r_normal * r_normal).sum(-1)
    a, b, c = k.normal**2, k.depth**2, k.silhouette**2
    fit = 1 / (1 + square / a + r_depth**2 / b)
    loss = expected - visible * fit + k.silhouette_weight * present * (1 - c / (r_silhouette**2 + c))
    weight = expected + k.silhouette_weight * present
    sums = (loss.sum(-1), weight.sum(-1))
    if not derivatives:
        return sums

    # Derivatives of u and v by the point, (q, p, 3) each.
    u_y = torch.stack([fx * inverse, skew * inverse, -(u - cx) * inverse], dim=-1)
    v_y = torch.stack([torch.zeros_like(u), fy * inverse, -(v - cy) * inverse], dim=-1)
    # Rows: three of the normal, one of the depth, one of the silhouette. The tangent plane moves with the point: along
    # itself, which has no effect, and by rotating with the target's normals.
    bend_u, bend_v = (along_u[..., :3] * offset).sum(-1), (along_v[..., :3] * offset).sum(-1)
    by_u = torch.cat([-along_u[..., :3], bend_u[..., None], along_u[..., 4:5]], dim=-1)
    by_v = torch.cat([-along_v[..., :3], bend_v[..., None], along_v[..., 4:5]], dim=-1)
    by_point = by_u[..., None] * u_y[..., None, :] + by_v[..., None] * v_y[..., None, :]
    by_point[..., 3, :] += n
    residual = torch.cat([r_normal, r_depth[..., None], r_silhouette[..., None]], dim=-1)
    w_normal, w_depth = visible * fit**2 / a, visible * fit**2 / b
    w_silhouette = k.silhouette_weight * present * (outside > 0) * c / (r_silhouette**2 + c) ** 2
    root = torch.stack([w_normal, w_normal, w_normal, w_depth, w_silhouette], dim=-1).sqrt()
    jacobian = torch.empty(*by_point.shape[:-1], 7)
    p = y[..., None, :]
    # Rotation: p x by_point, and m x (.) for the normals, in place.
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


def _bilinear(
    level: PyramidLevel, view: Int[Tensor, " q"], u: Float[Tensor, "q p"], v: Float[Tensor, "q p"]
) -> tuple[Float[Tensor, "q p c"], Float[Tensor, "q p c"], Float[Tensor, "q p c"]]:
    """Bilinear values of the views' maps at pixels (u, v), and their derivatives along u and v."""
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
    """Least-squares problem over the similarities of all views, for `levenberg_marquardt.solve`; the state is a `Sim3`.

    Each similarity takes a view's object frame to the world. The cost is the summed loss of all pairs over their summed
    weight, so that it does not decrease when views turn away from each other.

    Args:
        level: maps and points at one resolution.
        pairs: source and target views.
        kernels: kernel widths and weights.
        free: views whose similarities are optimized; all if None.
    """

    def __init__(
        self, level: PyramidLevel, pairs: Int[np.ndarray, "q 2"], kernels: Kernels, free: list[int] | None = None
    ) -> None:
        self.level, self.kernels = level, kernels
        self.source, self.target = np.ascontiguousarray(pairs.T)
        self.free = list(range(len(level.points))) if free is None else free
        self._column = np.full(len(level.points), -1)
        self._column[self.free] = np.arange(len(self.free))

    def has_pairs(self, pairs: Int[np.ndarray, "q 2"]) -> bool:
        """Whether the problem consists of exactly these pairs."""
        return np.array_equal(pairs, np.stack([self.source, self.target], axis=1))

    def terms(self, state: Sim3, derivatives: bool = True) -> tuple[PairTerms, Sim3]:
        """Terms and relative similarities of all pairs."""
        relative = state[self.target].inverse().compose(state[self.source])
        return pair_terms(self.level, self.source, self.target, relative, self.kernels, derivatives), relative

    def linearize(self, state: Sim3) -> Linearization:
        """Cost, gradient and Gauss-Newton Hessian by the twists of the free views, each in its own frame."""
        terms, relative = self.terms(state)
        assert terms.hessian is not None and terms.gradient is not None
        total = max(float(terms.weight.sum()), 1e-9)
        # Twists a_i of the source and a_j of the target move the relative similarity by Ad a_i - a_j.
        chain = relative.adjoint()
        crossed = np.swapaxes(chain, 1, 2) @ terms.hessian
        count = len(self.free)
        blocks, gradient = np.zeros((count + 1, count + 1, 7, 7)), np.zeros((count + 1, 7))
        i, j = self._column[self.source], self._column[self.target]  # -1, the last, for fixed views
        np.add.at(blocks, (i, i), crossed @ chain)
        np.add.at(blocks, (j, j), terms.hessian)
        np.subtract.at(blocks, (i, j), crossed)
        np.subtract.at(blocks, (j, i), np.swapaxes(crossed, 1, 2))
        np.add.at(gradient, i, np.einsum("qab,qa->qb", chain, terms.gradient))
        np.subtract.at(gradient, j, terms.gradient)
        hessian = blocks[:count, :count].transpose(0, 2, 1, 3).reshape(7 * count, 7 * count)
        scale = 2 / total  # the terms' derivatives are those of loss / 2
        return Linearization(scale * hessian, scale * gradient[:count].ravel(), float(terms.loss.sum()) / total)

    def retract(self, state: Sim3, delta: Float[np.ndarray, " p"]) -> Sim3:
        """The state with the free views moved by their twists."""
        twists = np.zeros((len(state), 7))
        twists[self.free] = delta.reshape(-1, 7)
        return state.retract(twists)

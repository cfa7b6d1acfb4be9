# SPDX-License-Identifier: Apache-2.0
"""Depth maps: integration with normals, consistency between views, and fusion into one surface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pmni_nerfstudio.geometry.cameras import pixel_directions, project
from pmni_nerfstudio.geometry.interpolation import nearest
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.views import Views


@dataclass(frozen=True)
class IntegrationOptions:
    """Weights and iterations of `integrate_depths`; an edge between two pixels has weight 1."""

    data_weight: float = 0.03
    """Weight of a measured depth of confidence 1."""
    rounds: int = 5
    """Iterations of reweighting."""
    iterations: int = 40
    """Conjugate gradient iterations per round."""


def integrate_depths(
    log_depth: Float[Tensor, "n h w"],
    confidence: Float[Tensor, "n h w"],
    along_x: Float[Tensor, "n h w"],
    along_y: Float[Tensor, "n h w"],
    footprint: float,
    step: float,
    options: IntegrationOptions = IntegrationOptions(),
) -> Float[Tensor, "n h w"]:
    """Log depths that follow the gradients given by the normals and stay near measured depths.

    Iteratively reweighted least squares with Geman-McClure weights. Edges whose difference in depth contradicts the
    gradients lose their weight: there the surface is discontinuous. The scale of the weights decreases from the error
    of measured depths to a pixel's footprint, so that quantization steps are not taken for discontinuities.

    Args:
        log_depth: measured depths, also the initial guess.
        confidence: of the measured depths, 0 to 1.
        along_x: change of log depth from a pixel to the next on its right; NaN where unknown or off the mask.
        along_y: change of log depth from a pixel to the one below it.
        footprint: width of a pixel relative to its depth.
        step: typical error of a measured log depth.
        options: weights and iterations.
    """
    slopes, known = [], []
    for axis, along in ((2, along_x), (1, along_y)):
        length = along.shape[axis] - 1
        slope = 0.5 * (along.narrow(axis, 0, length) + along.narrow(axis, 1, length))
        known.append(torch.isfinite(slope))
        slopes.append(slope.nan_to_num(0.0))
    solution = log_depth.clone()
    for k in range(options.rounds):
        discontinuity = max(step * (footprint / step) ** (k / max(options.rounds - 1, 1)), footprint)
        edges = []
        for axis, slope, is_known in zip((2, 1), slopes, known):
            scale = discontinuity + 0.5 * slope.abs()
            edges.append(is_known / (1 + ((solution.diff(dim=axis) - slope) / scale) ** 2) ** 2)
        data = options.data_weight * confidence / (1 + ((solution - log_depth) / step) ** 2) + 1e-6
        right = data * log_depth
        for axis, slope, edge in zip((2, 1), slopes, edges):
            right = right - _divergence(edge * slope, axis)
        solution = _conjugate_gradients(solution, right, data, edges, options.iterations)
    return solution


def _divergence(edge: Tensor, axis: int) -> Tensor:
    """Negative transpose of the difference along an axis."""
    zero = torch.zeros_like(edge.narrow(axis, 0, 1))
    padded = torch.cat([zero, edge, zero], dim=axis)
    return padded.diff(dim=axis)


def _conjugate_gradients(start: Tensor, right: Tensor, data: Tensor, edges: list[Tensor], iterations: int) -> Tensor:
    """Solve (diag(data) + Laplacian of the edges) x = right, for all views at once."""

    def times(x: Tensor) -> Tensor:
        out = data * x
        for axis, edge in zip((2, 1), edges):
            out = out - _divergence(edge * x.diff(dim=axis), axis)
        return out

    diagonal = data.clone()
    for axis, edge in zip((2, 1), edges):
        length = edge.shape[axis]
        diagonal.narrow(axis, 0, length).add_(edge)
        diagonal.narrow(axis, 1, length).add_(edge)
    x = start.clone()
    residual = right - times(x)
    step = residual / diagonal
    direction = step
    # Sums are per view, because the systems are independent.
    power = (residual * step).sum(dim=(1, 2), keepdim=True)
    for _ in range(iterations):
        moved = times(direction)
        length = power / (direction * moved).sum(dim=(1, 2), keepdim=True).clamp(min=1e-30)
        x = x + length * direction
        residual = residual - length * moved
        step = residual / diagonal
        fresh = (residual * step).sum(dim=(1, 2), keepdim=True)
        direction = step + fresh / power.clamp(min=1e-30) * direction
        power = fresh
    return x


def depth_consistency(
    views: Views,
    poses: Poses,
    depths: Float[np.ndarray, "n h w"],
    neighbors: Sequence[np.ndarray],
    tolerance: float,
    angle_deg: float = 30.0,
) -> tuple[Float[np.ndarray, "n h w"], Float[np.ndarray, "n h w"]]:
    """Number of neighboring views that confirm and that contradict the depth of each masked pixel.

    A view confirms a point if its own depth and normal there agree. It contradicts the point if it sees the background
    or a surface behind the point. Holes confirm nothing, and are confirmed by nothing.

    Args:
        views: views with normals and masks.
        poses: poses of the views.
        depths: z depth of each pixel.
        neighbors: indices of the views that each view is compared with.
        tolerance: relative difference in depth.
        angle_deg: difference in normals, in degrees.

    Returns:
        confirmed: number of views that confirm each pixel.
        contradicted: number of views that contradict each pixel.
    """
    confirmed = np.zeros(depths.shape, dtype=np.float32)
    contradicted = np.zeros(depths.shape, dtype=np.float32)
    world = np.einsum("nhwc,ncd->nhwd", views.normals, poses.R.astype(np.float32))
    for i, mask in enumerate(views.masks):
        y, x = np.nonzero(mask)
        rays = pixel_directions(views.K[i], np.stack([x, y], axis=1))
        points = (rays * depths[i, y, x][:, None] - poses.t[i]) @ poses.R[i]
        normals, measured = world[i, y, x], views.valid[i, y, x]
        for j in neighbors[i]:
            camera = poses.to_camera(int(j), points)
            row, column, inside = nearest(project(camera, views.K[j]), views.width, views.height)
            seen = inside & (camera[:, 2] > 0)
            relative = camera[:, 2] / depths[j, row, column] - 1
            on_mask, valid = views.masks[j, row, column], views.valid[j, row, column]
            alike = (world[j, row, column] * normals).sum(axis=1) > np.cos(np.radians(angle_deg))
            confirmed[i, y, x] += seen & valid & measured & alike & (np.abs(relative) < tolerance)
            contradicted[i, y, x] += seen & (~on_mask | valid & (relative < -2 * tolerance))
    return confirmed, contradicted


def fuse_depths(
    points: Float[np.ndarray, "p 3"],
    views: Views,
    poses: Poses,
    depths: Float[np.ndarray, "n h w"],
    weights: Float[np.ndarray, "n h w"],
    truncation: float,
    hidden_weight: float = 0.05,
) -> Float[np.ndarray, " p"]:
    """Fuse depth maps to a truncated signed distance at world points (Curless and Levoy, SIGGRAPH 1996).

    Each view contributes the distance to the tangent plane at the pixel that a point projects to. Points far behind a
    view's surface count as inside with a small weight, so that regions that no view sees are solid.

    Args:
        points: world points.
        views: views with normals and masks.
        poses: poses of the views.
        depths: z depth of each pixel.
        weights: weight of each pixel, 0 to ignore it.
        truncation: truncation distance, world units.
        hidden_weight: weight of points far behind a view's surface.
    """
    total, weight_sum = np.zeros(len(points)), np.full(len(points), 1e-6)
    total -= 1e-6 * truncation
    for i in range(len(views)):
        camera = poses.to_camera(i, points)
        row, column, inside = nearest(project(camera, views.K[i]), views.width, views.height)
        seen = np.flatnonzero(inside & (camera[:, 2] > 0) & (weights[i, row, column] > 0))
        row, column = row[seen], column[seen]
        rays = camera[seen] / camera[seen, 2:]
        in_front = depths[i, row, column] - camera[seen, 2]
        cosine = -(views.normals[i, row, column] * rays).sum(axis=1) / np.linalg.norm(rays, axis=1)
        # At grazing angles the cosine is limited, because depths within the pixel vary.
        distance = in_front * np.linalg.norm(rays, axis=1) * cosine.clip(0.2, 1)
        weight = weights[i, row, column] * np.where(in_front < -2 * truncation, hidden_weight, 1.0)
        total[seen] += weight * distance.clip(-truncation, truncation)
        weight_sum[seen] += weight
    return (total / weight_sum).astype(np.float32)

# SPDX-License-Identifier: Apache-2.0
"""Depth maps made smooth by their normals, checked against each other, and fused into one surface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pmni_nerfstudio.geometry.cameras import project
from pmni_nerfstudio.geometry.interpolation import nearest
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.views import Views


@dataclass(frozen=True)
class IntegrationOptions:
    """Weights of what is asked of the depths, relative to one edge between two pixels."""

    data_weight: float = 0.03
    """Of a depth that was found, times its confidence."""
    rounds: int = 5
    """Of reweighting."""
    iterations: int = 40
    """Of conjugate gradients, each round."""


def integrate_depths(
    log_depth: Float[Tensor, "n h w"],
    confidence: Float[Tensor, "n h w"],
    along_x: Float[Tensor, "n h w"],
    along_y: Float[Tensor, "n h w"],
    footprint: float,
    step: float,
    options: IntegrationOptions = IntegrationOptions(),
) -> Float[Tensor, "n h w"]:
    """Log depths that follow the normals' slopes and stay near those found, least squares with robust weights (Geman-McClure).

    Edges that the slopes contradict by more than a step of depth, in the end by more than a pixel's footprint, lose
    their weight: there the surface breaks.

    Args:
        log_depth: first guess, also what is held to.
        confidence: 0 to 1; 0 where a depth is only a guess.
        along_x: change of log depth from pixel to pixel, NaN where unknown or off the mask.
        along_y: the same downwards.
        footprint: a pixel's width over its depth.
        step: error of a found log depth that is still ordinary.
        options: weights and ends.
    """
    slopes, known = [], []
    for axis, along in ((2, along_x), (1, along_y)):
        length = along.shape[axis] - 1
        slope = 0.5 * (along.narrow(axis, 0, length) + along.narrow(axis, 1, length))
        known.append(torch.isfinite(slope))
        slopes.append(slope.nan_to_num(0.0))
    solution = log_depth.clone()
    for k in range(options.rounds):
        # Steps of depth, at first, are no breaks.
        break_at = max(step * (footprint / step) ** (k / max(options.rounds - 1, 1)), footprint)
        edges = []
        for axis, slope, there in zip((2, 1), slopes, known):
            scale = break_at + 0.5 * slope.abs()
            edges.append(there / (1 + ((solution.diff(dim=axis) - slope) / scale) ** 2) ** 2)
        held = options.data_weight * confidence / (1 + ((solution - log_depth) / step) ** 2) + 1e-6
        right = held * log_depth
        for axis, slope, edge in zip((2, 1), slopes, edges):
            right = right - _back(edge * slope, axis)
        solution = _conjugate_gradients(solution, right, held, edges, options.iterations)
    return solution


def _back(edge: Tensor, axis: int) -> Tensor:
    """Transpose of the difference along an axis, negated: what flows in less what flows out."""
    zero = torch.zeros_like(edge.narrow(axis, 0, 1))
    padded = torch.cat([zero, edge, zero], dim=axis)
    return padded.diff(dim=axis)


def _conjugate_gradients(start: Tensor, right: Tensor, held: Tensor, edges: list[Tensor], iterations: int) -> Tensor:
    """Solves (held + Laplacian of the edges) x = right for all views at once."""

    def times(x: Tensor) -> Tensor:
        out = held * x
        for axis, edge in zip((2, 1), edges):
            out = out - _back(edge * x.diff(dim=axis), axis)
        return out

    diagonal = held.clone()
    for axis, edge in zip((2, 1), edges):
        length = edge.shape[axis]
        diagonal.narrow(axis, 0, length).add_(edge)
        diagonal.narrow(axis, 1, length).add_(edge)
    x = start.clone()
    residual = right - times(x)
    step = residual / diagonal
    direction = step
    # One number a view: the systems are independent.
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


def agreement(
    views: Views,
    poses: Poses,
    depths: Float[np.ndarray, "n h w"],
    neighbours: Sequence[np.ndarray],
    tolerance: float,
    angle_deg: float = 30.0,
) -> tuple[Float[np.ndarray, "n h w"], Float[np.ndarray, "n h w"]]:
    """For each masked pixel, how many neighbours have the same depth there, and how many look through it.

    Args:
        views: normals and masks.
        poses: of the views.
        depths: z of each pixel.
        neighbours: views that each view is compared with.
        tolerance: on depths, relative.
        angle_deg: that normals may differ by.
    """
    same = np.zeros(depths.shape, dtype=np.float32)
    through = np.zeros(depths.shape, dtype=np.float32)
    world = np.einsum("nhwc,ncd->nhwd", views.normals, poses.R.astype(np.float32))
    for i, mask in enumerate(views.masks):
        y, x = np.nonzero(mask)
        rays = np.stack([x, y, np.ones(len(x))], axis=1) @ np.linalg.inv(views.K[i]).T
        points = (rays * depths[i, y, x][:, None] - poses.t[i]) @ poses.R[i]
        normals = world[i, y, x]
        for j in neighbours[i]:
            camera = poses.to_camera(int(j), points)
            row, column, inside = nearest(project(camera, views.K[j]), views.width, views.height)
            seen = inside & (camera[:, 2] > 0)
            relative = camera[:, 2] / depths[j, row, column] - 1
            hit = views.masks[j, row, column]
            alike = (world[j, row, column] * normals).sum(axis=1) > np.cos(np.radians(angle_deg))
            same[i, y, x] += seen & hit & alike & (np.abs(relative) < tolerance)
            through[i, y, x] += seen & (~hit | (relative < -2 * tolerance))
    return same, through


def fuse_depths(
    points: Float[np.ndarray, "p 3"],
    views: Views,
    poses: Poses,
    depths: Float[np.ndarray, "n h w"],
    weights: Float[np.ndarray, "n h w"],
    truncation: float,
    hidden_weight: float = 0.05,
) -> Float[np.ndarray, " p"]:
    """Truncated signed distance at world points: the mean over the views that look there (Curless and Levoy, 1996).

    The distance that a view gives is to the tangent plane at the pixel's surface. Points behind a view's surface are
    taken as inside by a small vote, so that what nobody sees is solid.

    Args:
        points: world.
        views: normals and masks.
        poses: of the views.
        depths: z of each pixel.
        weights: of each pixel, 0 to leave it out.
        truncation: world units.
        hidden_weight: of that vote.
    """
    total, weight_sum = np.zeros(len(points)), np.full(len(points), 1e-6)
    total -= 1e-6 * truncation
    for i in range(len(views)):
        camera = poses.to_camera(i, points)
        row, column, inside = nearest(project(camera, views.K[i]), views.width, views.height)
        seen = np.flatnonzero(inside & (camera[:, 2] > 0) & (weights[i, row, column] > 0))
        row, column = row[seen], column[seen]
        rays = camera[seen] / camera[seen, 2:]
        before = depths[i, row, column] - camera[seen, 2]
        cosine = -(views.normals[i, row, column] * rays).sum(axis=1) / np.linalg.norm(rays, axis=1)
        # Along the ray, in part: a slanted pixel's neighbours have other depths.
        distance = before * np.linalg.norm(rays, axis=1) * cosine.clip(0.2, 1)
        weight = weights[i, row, column] * np.where(before < -2 * truncation, hidden_weight, 1.0)
        total[seen] += weight * distance.clip(-truncation, truncation)
        weight_sum[seen] += weight
    return (total / weight_sum).astype(np.float32)

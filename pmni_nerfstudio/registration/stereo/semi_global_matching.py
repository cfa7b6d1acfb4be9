# SPDX-License-Identifier: Apache-2.0
"""Depths from matching costs by semi-global matching that follows known slants.

Hirschmueller, "Stereo processing by semiglobal matching and mutual information" (TPAMI 2008), with the transitions
moved by the surface's orientation: Scharstein, Taniai and Sinha, "Semi-global stereo matching with surface orientation
priors" (3DV 2017). Here the orientations are measured, so that a wall without texture is carried by its edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class SemiGlobalOptions:
    """What leaving the slant costs, in units of the matching costs."""

    small_jump: float = 0.03
    """By one step of depth."""
    large_jump: float = 0.4
    """By more."""


def aggregate(
    costs: Float[Tensor, "n h w d"],
    along_x: Float[Tensor, "n h w"],
    along_y: Float[Tensor, "n h w"],
    options: SemiGlobalOptions = SemiGlobalOptions(),
    base: Float[Tensor, "n h w"] | None = None,
) -> Float[Tensor, "n h w d"]:
    """Sum over eight directions of the least cost of a path that ends at each pixel and depth.

    Args:
        costs: of each pixel and step of depth.
        along_x: steps of depth that the surface rises from a pixel to the next on its right; NaN where unknown.
        along_y: the same from a pixel to the one below it.
        options: costs of jumps.
        base: where each pixel's steps begin, in steps; the same for all, if not given.
    """
    total = torch.zeros_like(costs)
    if base is None:
        base = torch.zeros_like(along_x)
    down, right = along_y, along_x
    for sense in (1, -1):
        for shift in (-1, 0, 1):
            # From the pixel above (below, for -1), `shift` columns to the left.
            slope = sense * down + shift * right
            _one_direction(costs, slope, base, sense, shift, options, total)
    turned, turned_total = costs.transpose(1, 2), total.transpose(1, 2)
    for sense in (1, -1):
        turned_slope = sense * right.transpose(1, 2)
        _one_direction(turned, turned_slope, base.transpose(1, 2), sense, 0, options, turned_total)
    return total


def _one_direction(
    costs: Tensor, slope: Tensor, base: Tensor, sense: int, shift: int, options: SemiGlobalOptions, total: Tensor
) -> None:
    """Adds one direction's path costs to the total, row by row."""
    n, height, width, steps = costs.shape
    rows = range(height) if sense > 0 else range(height - 1, -1, -1)
    levels = torch.arange(steps)
    before: Tensor | None = None
    offset = torch.zeros(n, width)
    slope_before = base_before = torch.full((n, width), torch.nan)
    for y in rows:
        cost = costs[:, y]
        if before is None:
            path = cost.clone()
        else:
            last = (before, offset, slope_before, base_before)
            moved, offset, slope_from, base_from = (_shifted(a, shift) for a in last)
            rise = 0.5 * (slope_from + slope[:, y]) + base_from - base[:, y]
            known = torch.isfinite(rise)
            # The running sum is rounded, not each rise, so that slight slants add up.
            fresh = torch.where(known, offset + rise, 0.0).clamp(-steps, steps)
            jump = torch.round(fresh)
            offset = fresh - jump
            index = levels - jump[..., None].long()
            reachable = (index >= 0) & (index < steps)
            moved = torch.gather(moved, 2, index.clamp(0, steps - 1))
            lowest = moved.amin(dim=2, keepdim=True)
            moved = torch.where(reachable, moved, lowest + options.large_jump)
            padded = F.pad(moved, (1, 1), value=torch.inf)
            beside = torch.minimum(padded[..., :-2], padded[..., 2:]) + options.small_jump
            best = torch.minimum(torch.minimum(moved, beside), lowest + options.large_jump) - lowest
            path = cost + torch.where(known[..., None], best, 0.0)
            offset = torch.where(known, offset, 0.0)
        total[:, y] += path
        before, slope_before, base_before = path, slope[:, y], base[:, y]


def _shifted(rows: Tensor, columns: int) -> Tensor:
    """Rows (N, W, ...) moved to the right; NaN moves in for slopes and offsets count as none, at the edge."""
    if columns == 0:
        return rows
    out = torch.full_like(rows, torch.nan) if rows.dim() == 2 else torch.zeros_like(rows)
    if columns > 0:
        out[:, columns:] = rows[:, :-columns]
    else:
        out[:, :columns] = rows[:, -columns:]
    return out


def winners(total: Float[Tensor, "n h w d"]) -> Float[Tensor, "n h w"]:
    """Best step of depth, with its fraction from a parabola."""
    index = total.argmin(dim=-1)
    middle = index.clamp(1, total.shape[-1] - 2)
    left, centre, right = (total.gather(-1, (middle + k)[..., None])[..., 0] for k in (-1, 0, 1))
    bend = left + right - 2 * centre
    fraction = (0.5 * (left - right) / bend.clamp(min=1e-9)).clamp(-0.5, 0.5)
    return index + torch.where((middle == index) & (bend > 1e-9), fraction, 0.0)

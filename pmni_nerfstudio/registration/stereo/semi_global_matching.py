# SPDX-License-Identifier: Apache-2.0
"""Semi-global matching with surface orientations: depths from matching costs.

Hirschmueller, "Stereo processing by semiglobal matching and mutual information" (TPAMI 2008), with paths that follow
the surface's slant as in Scharstein, Taniai and Sinha, "Semi-global stereo matching with surface orientation priors"
(3DV 2017). Orientations are measured here, so that depths at the edges of a flat surface extend over all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class SemiGlobalOptions:
    """Penalties for leaving the slant, in units of the matching costs."""

    small_jump: float = 0.03
    """Penalty for a deviation of one depth step."""
    large_jump: float = 0.4
    """Penalty for any larger deviation."""


def aggregate(
    costs: Float[Tensor, "n h w d"],
    along_x: Float[Tensor, "n h w"],
    along_y: Float[Tensor, "n h w"],
    options: SemiGlobalOptions = SemiGlobalOptions(),
    base: Float[Tensor, "n h w"] | None = None,
) -> Float[Tensor, "n h w d"]:
    """Aggregate matching costs: the sum over eight directions of the least cost of a path to each pixel and depth.

    Args:
        costs: matching costs of each pixel and depth step.
        along_x: change of depth from a pixel to the next on its right, in steps; NaN where unknown.
        along_y: change of depth from a pixel to the one below it, in steps; NaN where unknown.
        options: penalties.
        base: offset of each pixel's first depth step, in steps; 0 by default.
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
    transposed, transposed_total = costs.transpose(1, 2), total.transpose(1, 2)
    for sense in (1, -1):
        transposed_slope = sense * right.transpose(1, 2)
        _one_direction(transposed, transposed_slope, base.transpose(1, 2), sense, 0, options, transposed_total)
    return total


def _one_direction(
    costs: Tensor, slope: Tensor, base: Tensor, sense: int, shift: int, options: SemiGlobalOptions, total: Tensor
) -> None:
    """Add the path costs of one direction to the total, row by row.

    Args:
        costs: matching costs (n, h, w, d).
        slope: change of depth (n, h, w) along the path per pixel, in steps; NaN where unknown.
        base: offset (n, h, w) of each pixel's first depth step, in steps.
        sense: 1 from top to bottom, -1 from bottom to top.
        shift: columns to the right per row.
        options: penalties.
        total: path costs (n, h, w, d), updated in place.
    """
    n, height, width, steps = costs.shape
    rows = range(height) if sense > 0 else range(height - 1, -1, -1)
    levels = torch.arange(steps)
    previous: Tensor | None = None
    offset = torch.zeros(n, width)
    previous_slope = previous_base = torch.full((n, width), torch.nan)
    for y in rows:
        cost = costs[:, y]
        if previous is None:
            path = cost.clone()
        else:
            state = (previous, offset, previous_slope, previous_base)
            arriving, offset, slope_from, base_from = (_shifted(a, shift) for a in state)
            rise = 0.5 * (slope_from + slope[:, y]) + base_from - base[:, y]
            known = torch.isfinite(rise)
            # Round the accumulated rise, not each one, so that slight slants add up.
            accumulated = torch.where(known, offset + rise, 0.0).clamp(-steps, steps)
            jump = torch.round(accumulated)
            offset = accumulated - jump
            index = levels - jump[..., None].long()
            reachable = (index >= 0) & (index < steps)
            arriving = torch.gather(arriving, 2, index.clamp(0, steps - 1))
            lowest = arriving.amin(dim=2, keepdim=True)
            arriving = torch.where(reachable, arriving, lowest + options.large_jump)
            padded = F.pad(arriving, (1, 1), value=torch.inf)
            adjacent = torch.minimum(padded[..., :-2], padded[..., 2:]) + options.small_jump
            best = torch.minimum(torch.minimum(arriving, adjacent), lowest + options.large_jump) - lowest
            path = cost + torch.where(known[..., None], best, 0.0)
            offset = torch.where(known, offset, 0.0)
        total[:, y] += path
        previous, previous_slope, previous_base = path, slope[:, y], base[:, y]


def _shifted(rows: Tensor, columns: int) -> Tensor:
    """Shift rows (N, W, ...) to the right, filling two-dimensional ones with NaN and others with zeros."""
    if columns == 0:
        return rows
    out = torch.full_like(rows, torch.nan) if rows.dim() == 2 else torch.zeros_like(rows)
    if columns > 0:
        out[:, columns:] = rows[:, :-columns]
    else:
        out[:, :columns] = rows[:, -columns:]
    return out


def winner_takes_all(total: Float[Tensor, "n h w d"]) -> Float[Tensor, "n h w"]:
    """Depth step of least total cost, refined to a fraction of a step by a parabola."""
    index = total.argmin(dim=-1)
    middle = index.clamp(1, total.shape[-1] - 2)
    left, center, right = (total.gather(-1, (middle + k)[..., None])[..., 0] for k in (-1, 0, 1))
    curvature = left + right - 2 * center
    fraction = (0.5 * (left - right) / curvature.clamp(min=1e-9)).clamp(-0.5, 0.5)
    return index + torch.where((middle == index) & (curvature > 1e-9), fraction, 0.0)

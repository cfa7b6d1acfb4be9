# SPDX-License-Identifier: Apache-2.0
"""Normals, albedo and confidence of one view, with distant lights or near ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.integration.bilateral import integrate_normals
from pmni_nerfstudio.photometric.lights import Lights
from pmni_nerfstudio.photometric.photographs import Photographs
from pmni_nerfstudio.photometric.solver import SolverOptions, shading, solve

_CHUNK_VALUES = 1 << 18
"""Image values (pixels times lights) that are solved at once: a few arrays of this size fit into a processor's cache, and
working memory stays below 50 MB with near lights."""
_TYPICAL_RESIDUAL = 0.05
"""Relative residual at which confidence is halved: a few percent remain where a matte model fits a real surface."""
_ENOUGH_LIGHTS = 10
"""Usable lights beyond which more do not raise the confidence."""
_MAX_FACING_AWAY = 0.17
"""Cosine by which a normal may point away from the viewer, as noise at the rim does (10 degrees); it is then turned to
be seen edge-on."""
_DEPTH_ROUNDS = 12
"""Alternations of normal integration for near lights: rough depth suffices."""
_DEPTH_CHANGE = 1e-3
"""Relative change of depth below which near lights are not solved again."""


@dataclass(frozen=True, eq=False)
class ViewMaps:
    """Maps of one view; zero off the mask and where not `valid`, unless stated otherwise."""

    mask: Bool[np.ndarray, "h w"]
    normals: Float[np.ndarray, "h w 3"]
    """Unit normals in OpenCV camera axes, float32; some point away from the viewer until `facing_viewer`."""
    albedo: Float[np.ndarray, "h w c"]
    """Albedo in units of the image values over the intensities, float32."""
    confidence: Float[np.ndarray, "h w"]
    """From 0 to 1: 1 / (1 + (residual / 0.05)^2), times the share of ten lights that are usable beyond two."""
    residual: Float[np.ndarray, "h w"]
    """Mean absolute residual relative to the mean value."""
    unexplained: Float[np.ndarray, "h w"]
    """Share of the values' variation that the matte model does not explain; see `Solution.unexplained`."""
    shadowed: Float[np.ndarray, "h w"]
    """Share of the lights that do not reach the pixel."""
    highlights: Float[np.ndarray, "h w"]
    """Share of the lights with a highlight."""

    @property
    def valid(self) -> Bool[np.ndarray, "h w"]:
        """Pixels with a normal."""
        return self.normals.any(axis=-1)


def solve_view(
    photographs: Photographs,
    lights: Lights,
    K: Float[np.ndarray, "3 3"],
    distance: float | None = None,
    options: SolverOptions = SolverOptions(),
    min_lights: int = 4,
    depth_rounds: int = 2,
) -> ViewMaps:
    """Solve one view.

    With near lights, the object is a plane at its mean distance at first; then, `depth_rounds` times, normals are integrated
    to depths with this mean, and solved again with the directions and distances of the lights at these depths.

    Args:
        photographs: image values.
        lights: one for each image.
        K: intrinsics in pixels, pixel centers at integers.
        distance: mean z depth of the object, in the units of near lights.
        options: settings of the solver.
        min_lights: fewest values of a pixel, neither in shadow nor clipped, that make it valid.
        depth_rounds: maximum number of depth updates for near lights.
    """
    mask = photographs.mask
    y, x = np.nonzero(mask)
    rays = pixel_directions(K, np.stack([x, y], axis=-1))
    depth = np.full(len(rays), 1.0 if distance is None else distance)
    maps = _solve_at(photographs, lights, rays, depth, distance, options, min_lights)
    for _ in range(depth_rounds if lights.is_near else 0):
        whole = integrate_normals(facing_viewer(maps, K).normals.astype(np.float64), mask, K, max_rounds=_DEPTH_ROUNDS)
        if not np.isfinite(whole[mask]).all():  # no normals at all
            break
        before, depth = depth, whole[mask] * (distance or 1.0)
        if np.quantile(np.abs(depth / before - 1), 0.99) < _DEPTH_CHANGE:
            break
        maps = _solve_at(photographs, lights, rays, depth, distance, options, min_lights)
    return maps


def facing_viewer(maps: ViewMaps, K: Float[np.ndarray, "3 3"]) -> ViewMaps:
    """Maps without normals that point away from the viewer: turned to be edge-on, or invalid beyond 10 degrees."""
    y, x = np.nonzero(maps.mask)
    rays = pixel_directions(K, np.stack([x, y], axis=-1)).astype(np.float32)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    normals = maps.normals[maps.mask]
    away = np.maximum((normals * rays).sum(axis=1), 0)
    # A thousandth towards the viewer keeps the sign certain in half precision.
    turned = normals - np.where(away > 0, away + 2e-3, 0)[:, None] * rays
    turned /= np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-12)
    is_hole = away > _MAX_FACING_AWAY
    turned[is_hole | ~normals.any(axis=1)] = 0
    out = np.zeros_like(maps.normals)
    out[maps.mask] = turned
    keep = out.any(axis=-1)
    return replace(
        maps,
        normals=out,
        albedo=np.where(keep[..., None], maps.albedo, 0),
        confidence=np.where(keep, maps.confidence, 0),
    )


def _solve_at(
    photographs: Photographs,
    lights: Lights,
    rays: Float[np.ndarray, "p 3"],
    depth: Float[np.ndarray, " p"],
    distance: float | None,
    options: SolverOptions,
    min_lights: int,
) -> ViewMaps:
    """Maps with the lights at given depths, chunk by chunk."""
    count, channels = photographs.num_pixels, photographs.stored.shape[2]
    normals, albedo = np.zeros((count, 3), np.float32), np.zeros((count, channels), np.float32)
    confidence, residual, unexplained, shadowed, highlights = np.zeros((5, count), np.float32)
    step = max(64, _CHUNK_VALUES // len(lights))
    for start in range(0, count, step):
        chunk = slice(start, min(start + step, count))
        values, clipped = photographs.linear(chunk)
        directions, attenuation = lights.at(rays[chunk] * depth[chunk, None], distance or 1.0)
        is_lit = attenuation > 0
        values /= np.where(is_lit, attenuation, 1)[..., None]
        found = solve(values.mean(axis=2), clipped | ~is_lit, directions, options)
        usable = (~found.shadowed & ~clipped & is_lit).sum(axis=1)
        solved = found.solved & (usable >= min_lights)
        gray = np.linalg.norm(found.scaled_normals, axis=1)
        solved &= gray > 0
        normals[chunk] = np.where(solved[:, None], found.scaled_normals / np.where(gray > 0, gray, 1)[:, None], 0)
        albedo[chunk] = _albedo(values, found.used & solved[:, None], normals[chunk], directions)
        fit = np.where(solved, found.residual, 1).astype(np.float32)
        residual[chunk] = np.where(solved, fit, 0)
        share = np.clip((usable - 2) / max(1, min(len(lights), _ENOUGH_LIGHTS) - 2), 0, 1)
        confidence[chunk] = np.where(solved, share / (1 + (fit / _TYPICAL_RESIDUAL) ** 2), 0)
        unexplained[chunk] = np.where(solved, found.unexplained, 0)
        shadowed[chunk] = found.shadowed.mean(axis=1)
        highlights[chunk] = found.highlights.mean(axis=1)

    def placed(values: np.ndarray) -> np.ndarray:
        out = np.zeros((*photographs.mask.shape, *values.shape[1:]), np.float32)
        out[photographs.mask] = values
        return out

    maps = (placed(values) for values in (normals, albedo, confidence, residual, unexplained, shadowed, highlights))
    return ViewMaps(photographs.mask, *maps)


def _albedo(
    values: Float[np.ndarray, "p n c"],
    used: Bool[np.ndarray, "p n"],
    normals: Float[np.ndarray, "p 3"],
    directions: np.ndarray,
) -> Float[np.ndarray, "p c"]:
    """Least squares albedo of each channel, from the values that determined the normal."""
    cosine = np.where(used, np.maximum(shading(normals, directions), 0), 0)
    total = np.maximum((cosine**2).sum(axis=1, keepdims=True), 1e-12)
    return np.matmul(cosine[:, None], values)[:, 0] / total

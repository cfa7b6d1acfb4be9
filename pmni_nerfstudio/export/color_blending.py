# SPDX-License-Identifier: Apache-2.0
"""One color for each point from its samples in several views, without highlights and other outliers.

Views are first brought to one exposure by a factor for each view and channel, from the points that several of them see. The
color of a point then begins with a weighted quantile of its samples, below the median because highlights are brighter than
the surface, and is refined by iteratively reweighted least squares with Geman and McClure's weights.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.spatial import KDTree

from pmni_nerfstudio.export.color_samples import ColorSamples

_QUANTILE = 0.3
_ROUNDS = 4
_RELATIVE_SCALE, _ABSOLUTE_SCALE = 0.08, 0.005
"""Residuals, relative to the color and in linear light, at which the weight of a sample is a quarter."""
_LEVEL_POINTS = 10_000
_LEVEL_ROUNDS = 30
_LEVEL_SCALE = 5.0
"""Factor on the scale of residuals at first, as long as exposures differ; it falls to one."""
_DARK = 0.01
"""Linear values added before logarithms, so that noise in the dark does not count."""
_FILL_CELL = 0.01
"""Side of the cells of unseen points that get one color, relative to the diagonal."""
_FILL_NEIGHBORS = 12
_CHUNK = 1 << 17


def view_gains(samples: ColorSamples, seed: int = 0) -> Float[np.ndarray, "n 3"]:
    """Factors on the colors of views 0 to n - 1 that make them agree, with a geometric mean of one.

    For each view, it is the median ratio of the points' mean colors to its own, in turns with these means.
    """
    several = np.flatnonzero((samples.weights > 0).sum(axis=1) > 1)
    views = samples.views[samples.weights > 0]
    count = int(views.max()) + 1 if len(views) else 0
    logs = np.zeros((count, 3))
    if len(several) > _LEVEL_POINTS:
        several = np.random.default_rng(seed).choice(several, _LEVEL_POINTS, replace=False)
    weights, view = samples.weights[several], samples.views[several]
    colors = samples.colors[several].astype(np.float32)
    members = [np.nonzero((weights > 0) & (view == index)) for index in range(count)]
    for scale in np.geomspace(_LEVEL_SCALE, 1, _LEVEL_ROUNDS):
        leveled = colors * np.exp(logs).astype(np.float32)[view]
        means = _robust_means(leveled, weights, scale)
        misfit = np.log(means + np.float32(_DARK))[:, None] - np.log(leveled + np.float32(_DARK))
        for index, (point, slot) in enumerate(members):
            if len(point):
                logs[index] += np.median(misfit[point, slot], axis=0)
        logs -= logs.mean(axis=0)
    return np.exp(logs)


def blended(
    samples: ColorSamples, gains: Float[np.ndarray, "n 3"]
) -> tuple[Float32[np.ndarray, "P 3"], Bool[np.ndarray, " P"]]:
    """Colors in linear light, and whether any view sees each point; the colors of the others are zero."""
    count = len(samples.weights)
    out, seen = np.zeros((count, 3), np.float32), samples.weights.max(axis=1, initial=0) > 0
    factors = gains.astype(np.float32)
    for start in range(0, count, _CHUNK):
        index = start + np.flatnonzero(seen[start : start + _CHUNK])
        if len(index):
            colors = samples.colors[index].astype(np.float32) * factors[samples.views[index]]
            out[index] = _robust_means(colors, samples.weights[index])
    return out, seen


def _robust_means(
    colors: Float32[np.ndarray, "n k 3"], weights: Float32[np.ndarray, "n k"], factor: float = 1.0
) -> Float32[np.ndarray, "n 3"]:
    # Points last: NumPy is slow along short axes.
    values, weights = np.ascontiguousarray(colors.transpose(2, 1, 0)), np.ascontiguousarray(weights.T)
    brightness = values[0] + values[1] + values[2]
    brightness[weights == 0] = np.inf
    order = brightness.argsort(axis=0)
    total = np.take_along_axis(weights, order, axis=0).cumsum(axis=0)
    place = (total < np.float32(_QUANTILE) * total[-1]).sum(axis=0)
    points = np.arange(len(colors))
    center = values[:, order[place, points], points]
    for _ in range(_ROUNDS):
        scale = np.float32(factor) * (_ABSOLUTE_SCALE + np.float32(_RELATIVE_SCALE / 3) * center.sum(axis=0))
        residual = np.abs(values - center[:, None]).max(axis=0) / scale
        robust = weights / np.square(1 + np.square(residual))
        center = (robust * values).sum(axis=1) / robust.sum(axis=0)
    return center.T


def fill_unseen(
    colors: Float32[np.ndarray, "P 3"], seen: Bool[np.ndarray, " P"], points: Float[np.ndarray, "P 3"], diagonal: float
) -> None:
    """Give unseen points the mean of the nearest colors that are seen, in place, cell by cell."""
    if seen.all():
        return
    # Unseen points lie in patches far from all seen points: a search for each takes most of the time.
    cell = _FILL_CELL * diagonal
    cells, member = np.unique(np.round(points[~seen] / cell), axis=0, return_inverse=True)
    known = np.flatnonzero(seen)
    found = KDTree(points[known]).query(cell * cells, k=min(_FILL_NEIGHBORS, len(known)))
    distance, nearest = (np.reshape(values, (len(cells), -1)) for values in found)
    weights = 1 / np.square(distance + 0.1 * cell)
    means = np.einsum("pk,pkc->pc", weights, colors[known[nearest]]) / weights.sum(axis=1)[:, None]
    colors[~seen] = means[member.reshape(-1)]

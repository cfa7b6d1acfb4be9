# SPDX-License-Identifier: Apache-2.0
"""Focus of photographs: the sharpness of each view of a part of the surface, relative to the other views of it.

Sharpness is the root mean square of the Laplacian of the logarithm of the image in a window, times the pixels per
unit of length on the surface. The factor is a compromise: the Laplacian of a step edge is the same at any distance,
whereas that of a smooth pattern falls with the square of the pixels per unit of length. A blurred view has less of it
than others of the same texture. Where there is no texture, all views are alike, and none loses weight.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32

_DARK = 0.05
"""Linear value added before logarithms, so that noise in the dark is no contrast."""
_SMOOTHING_PX = 0.8
"""Standard deviation of the Gaussian filter against noise."""
_WINDOW_PX = 6.0
"""Standard deviation of the window."""
_CELL = 1 / 16
"""Side of the cells in which sharpness is compared, relative to the diagonal."""
_MIN_VIEWS = 3
"""Views of a point that are needed to say which of them are blurred."""
_PRIOR = 20.0
"""Number of a cell's points at which the cell counts as much as the mean of the view, towards which small cells
shrink."""
_TOLERANCE = 0.5
"""Sharpness relative to the median of the views from which on the weight is full."""
_POWER = 4.0
"""Exponent of the decrease of the weight below that."""
_POINTS = 200_000
"""Approximate number of points that sharpness is averaged over."""
_CHUNK = 1 << 18
"""Points to process at once."""


def local_sharpness(image: Float32[np.ndarray, "H W 3"], valid: Bool[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Root mean square of the Laplacian of the image's logarithm in a window around each pixel.

    Args:
        image: RGB in linear light.
        valid: pixels that count, without saturated ones, whose edges would look sharp; those at its border do not.
    """
    logs = np.log(image.mean(axis=2, dtype=np.float32).clip(0) + np.float32(_DARK))
    logs = cv2.GaussianBlur(logs, (0, 0), _SMOOTHING_PX)
    inner = cv2.erode(valid.astype(np.uint8), np.ones((7, 7), np.uint8), borderValue=(0.0,)).astype(np.float32)
    energy = inner * cv2.Laplacian(logs, cv2.CV_32F) ** 2
    total, count = (cv2.GaussianBlur(values, (0, 0), _WINDOW_PX) for values in (energy, inner))
    return np.sqrt(total / np.maximum(count, 1e-3))


def focus_factors(
    sharpness: Float[np.ndarray, "P k"],
    views: np.ndarray,
    points: Float[np.ndarray, "P 3"],
    diagonal: float,
) -> Float32[np.ndarray, "P k"]:
    """Factors on the weights of the points' samples, from 0 to 1: low where a view is less sharp than most others.

    The views' sharpness relative to the median of all views of a point is averaged over cells of the surface, because
    blur by focus or motion changes slowly over an image, and highlights do not.

    Args:
        sharpness: of the samples; zero: no sample.
        views: (P, k) view of each sample.
        points: on the surface.
        diagonal: of the mesh's bounding box.
    """
    low = points.min(axis=0)
    sides = np.floor(np.ptp(points, axis=0) / (_CELL * diagonal)).astype(int) + 1

    def cells(part: slice) -> np.ndarray:
        index = np.floor((points[part] - low) / (_CELL * diagonal)).astype(int)
        return np.asarray(np.ravel_multi_index(tuple(index.T), tuple(sides)))

    some = slice(None, None, max(1, len(points) // _POINTS))
    values, seen = sharpness[some].astype(np.float32), sharpness[some] > 0
    count = seen.sum(axis=1)
    median = np.sort(np.where(seen, values, np.inf), axis=1)[np.arange(len(values)), (count - 1).clip(0) // 2]
    point, slot = np.nonzero(seen & (count >= _MIN_VIEWS)[:, None])
    factors = np.ones(sharpness.shape, np.float32)
    if not len(point):
        return factors
    logs = np.log(values[point, slot] / median[point])
    shape = (int(views.max()) + 1, int(np.prod(sides)))
    view, cell = views[some][point, slot].astype(int), cells(some)[point]
    total, number = (
        np.bincount(view * shape[1] + cell, weights, np.prod(shape)).reshape(shape) for weights in (logs, None)
    )
    means = total.sum(axis=1, keepdims=True) / np.maximum(number.sum(axis=1, keepdims=True), 1)
    ratio = np.exp((total + _PRIOR * means) / (number + _PRIOR))
    table = ((ratio / _TOLERANCE).clip(0, 1) ** _POWER).astype(np.float32)
    for start in range(0, len(points), _CHUNK):
        part = slice(start, start + _CHUNK)
        factors[part] = table[views[part].astype(int), cells(part)[:, None]]
    return factors

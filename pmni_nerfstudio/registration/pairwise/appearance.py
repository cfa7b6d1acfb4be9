# SPDX-License-Identifier: Apache-2.0
"""Similarity of appearance: which views look alike, whatever their roll and distance, without a search for their poses."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from pmni_nerfstudio.registration.pairwise.integrated_depth import KNOWN, PyramidLevel

_RADII, _ANGLES = 8, 48
_EXTENT = 2.0
"""Outer radius of the polar grid, in radii of the disk that has the mask's area."""


def appearance_distances(level: PyramidLevel) -> Float[np.ndarray, "n n"]:
    """Differences between the normal maps and masks of all pairs of views, at the roll at which each pair is most alike.

    Every view is resampled on a polar grid about the centroid of its mask, scaled by the mask's area. Normals are
    expressed along the grid (radial, tangential, to the viewer), so that a roll of the camera shifts the maps along the
    angle; the best shift is found by a correlation in the Fourier domain. The nearest of 120 views on a ring are
    neighbors in space, and of 36 views all around an object for nine out of ten.
    """
    count = len(level.points)
    table = level.table.numpy().reshape(count, level.height, level.width, -1)[..., :KNOWN]
    polar = np.stack([_polar(view) for view in table])
    spectrum = np.fft.rfft(polar, axis=2)
    products = np.einsum("ick,jck->ijk", spectrum, spectrum.conj(), optimize=True)
    correlation = np.fft.irfft(products, n=_ANGLES, axis=2).max(axis=2)
    power = (polar**2).sum(axis=(1, 2))
    return np.sqrt((power[:, None] + power[None] - correlation - correlation.T).clip(0))


def in_order(distances: Float[np.ndarray, "n n"], max_ratio: float = 0.9) -> bool:
    """Whether consecutive views look more alike than others, as in a video or on a turntable with small steps.

    Args:
        distances: differences between all pairs of views.
        max_ratio: largest ratio of the consecutive views' mean difference to that of all pairs. In random order the ratio
            is about 1; it is 0.77 on a ring with steps of 18 degrees, and lower with smaller ones.
    """
    pairs = distances[~np.eye(len(distances), dtype=bool)]
    return float(np.diagonal(distances, 1).mean()) < max_ratio * float(pairs.mean())


def spread_views(distances: Float[np.ndarray, "n n"], count: int) -> Int[np.ndarray, " count"]:
    """Views that look as different from each other as possible, by farthest-point sampling; in ascending order.

    Args:
        distances: differences between all pairs of views.
        count: number of views to choose.
    """
    chosen = [int(distances.sum(axis=1).argmin())]
    nearest = distances[chosen[0]].copy()
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distances[chosen[-1]])
    return np.sort(chosen)


def _polar(view: Float[np.ndarray, "h w 5"]) -> Float[np.ndarray, "c a"]:
    """Mask and normals of one view on the polar grid, weighted by the area of the grid's cells."""
    mask = (view[..., 4] <= 0).astype(np.float32)
    y, x = np.nonzero(mask)
    if len(y) == 0:  # an object thinner than a pixel of the level: it looks like nothing
        return np.zeros((4 * _RADII, _ANGLES))
    outer = _EXTENT * np.sqrt(len(y) / np.pi)
    radius = (np.arange(_RADII) + 0.5) / _RADII * outer
    angle = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    cosine, sine = np.cos(angle), np.sin(angle)
    where = np.stack([y.mean() + radius[:, None] * sine, x.mean() + radius[:, None] * cosine])
    inside, along_x, along_y, along_z = (
        ndimage.map_coordinates(values, where, order=1, cval=0.0)
        for values in (mask, *np.moveaxis(view[..., :3] * mask[..., None], 2, 0))
    )
    radial, tangential = along_x * cosine + along_y * sine, along_y * cosine - along_x * sine
    maps = np.stack([inside, radial, tangential, along_z]) * np.sqrt(radius / outer)[:, None]
    return maps.reshape(4 * _RADII, _ANGLES)

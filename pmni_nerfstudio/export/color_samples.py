# SPDX-License-Identifier: Apache-2.0
"""Colors of surface points in the views that see them: the best few for each point, gathered view by view.

A view sees a point if its distance agrees with the view's depth map, at a viewing angle that is not grazing. Its weight is
the number of pixels on a unit of the surface's area, which grows with resolution and with the cosine of the viewing angle,
times the view's confidence; it falls to zero at silhouettes and depth discontinuities, so that no color ends with a seam.
Views that are less sharp than most others of the same part of the surface lose weight; see `focus`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
import trimesh
from jaxtyping import Float, Float32, Int

from pmni_nerfstudio.data.resample import resample_intrinsics
from pmni_nerfstudio.export.focus import focus_factors, local_sharpness
from pmni_nerfstudio.export.photographs import Photograph
from pmni_nerfstudio.geometry.cameras import pixel_rays
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.visibility import MAX_DEPTH_STEP, MIN_COSINE, depth_tolerance

BEST = 8
"""Samples kept for each point: those of the largest weights. Bounds the memory for any number of views."""
_FEATHER_PX = 3.0
"""Distance from silhouettes and depth discontinuities, in pixels of the maps, at which the weight is full."""
_CLIPPED_WEIGHT = 1e-3
"""Factor on the weight of saturated colors, which count only where nothing else is seen."""
_TEXELS_PER_PIXEL = 1.5
"""Photographs with smaller pixels than this share of a texel are averaged to larger ones first."""
_PIXELS = 400_000, 1_500_000
"""Least and largest number of pixels of the depth maps."""
_CHUNK = 1 << 19


class ColorSamples:
    """The best samples of P points, in linear light."""

    def __init__(self, count: int) -> None:
        self.colors = np.zeros((count, BEST, 3), np.float16)
        self.weights = np.zeros((count, BEST), np.float32)
        """Zero: no sample."""
        self.views = np.zeros((count, BEST), np.uint16)
        self.sharpness = np.zeros((count, BEST), np.float32)
        """Sharpness of each sample's pixel, as `focus.local_sharpness` measures it; zero: not known."""

    def add(
        self,
        view: int,
        index: Int[np.ndarray, " n"],
        colors: Float32[np.ndarray, "n 3"],
        weights: Float32[np.ndarray, " n"],
        sharpness: Float32[np.ndarray, " n"] | None = None,
    ) -> None:
        """Add a sample to each of some points, in place of the one of the least weight."""
        rows = self.weights[index]
        slot = rows.argmin(axis=1)
        better = weights > rows[np.arange(len(rows)), slot]
        index, slot = index[better], slot[better]
        self.weights[index, slot] = weights[better]
        self.colors[index, slot] = colors[better].clip(0, np.finfo(np.float16).max)
        self.views[index, slot] = view
        self.sharpness[index, slot] = 0 if sharpness is None else sharpness[better]


def gather_samples(
    mesh: trimesh.Trimesh,
    rays: RayCaster,
    points: Float[np.ndarray, "P 3"],
    normals: Float32[np.ndarray, "P 3"],
    photographs: Iterable[Photograph],
) -> ColorSamples:
    """Sample all photographs, of which one at a time is in memory.

    Args:
        mesh: mesh that determines the visibility of the points.
        rays: its ray caster.
        points: points on the mesh.
        normals: unit outward normals at the points.
        photographs: photographs of the mesh.
    """
    samples = ColorSamples(len(points))
    tolerance, extent = depth_tolerance(mesh), float(np.linalg.norm(mesh.extents))
    spacing = float(np.sqrt(mesh.area / max(len(points), 1)))
    for view, photograph in enumerate(photographs):
        distance, weight, K = _view_maps(photograph, rays)
        image, c2w = photograph.image, photograph.c2w
        # Texels that cover several pixels take the mean over them.
        pixel = (
            float(np.linalg.norm(mesh.bounds.mean(axis=0) - c2w[:3, 3])) / K[0, 0] * weight.shape[1] / image.shape[1]
        )
        factor = _TEXELS_PER_PIXEL * pixel / spacing
        if factor < 0.75:
            image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        scale = np.array([image.shape[1] / weight.shape[1], image.shape[0] / weight.shape[0]], np.float32)
        shown = cv2.resize(
            (weight > 0).astype(np.uint8), (image.shape[1], image.shape[0]), interpolation=cv2.INTER_NEAREST
        )
        pixel_sharpness = local_sharpness(image, (shown > 0) & (image.max(axis=2) < photograph.clipped))
        for start in range(0, len(points), _CHUNK):
            part = slice(start, start + _CHUNK)
            towards = (points[part] - c2w[:3, 3]).astype(np.float32)
            length = np.sqrt(np.einsum("pi,pi->p", towards, towards))
            cosine = -np.einsum("pi,pi->p", towards, normals[part]) / length
            index = np.flatnonzero(cosine > MIN_COSINE)
            camera = towards[index] @ c2w[:3, :3].astype(np.float32)
            length, cosine = length[index], cosine[index]
            depth = np.where(camera[:, 2] > 0, camera[:, 2], np.float32(np.nan))
            x = ((K[0, 0] * camera[:, 0] + K[0, 1] * camera[:, 1]) / depth + K[0, 2]).astype(np.float32)
            y = (K[1, 1] * camera[:, 1] / depth + K[1, 2]).astype(np.float32)
            inside = (x >= 0) & (x <= weight.shape[1] - 1) & (y >= 0) & (y <= weight.shape[0] - 1)  # not if x is NaN
            here = np.where(inside, bilinear(weight, x, y), 0)
            slack = tolerance + length / np.float32(K[0, 0])  # a pixel, between which the surface may bend
            seen = np.flatnonzero((here > 0) & (np.abs(length - bilinear(distance, x, y)) < slack))
            x, y, cosine, length = x[seen], y[seen], cosine[seen], length[seen]
            x, y = (x + 0.5) * scale[0] - 0.5, (y + 0.5) * scale[1] - 0.5
            colors = bilinear(image, x, y)
            density = cosine * (K[0, 0] * scale[0] / length * extent / 1000) ** 2
            quality = here[seen] * density
            sharpness = bilinear(pixel_sharpness, x, y) * np.sqrt(density)
            quality[colors.max(axis=1) >= photograph.clipped] *= _CLIPPED_WEIGHT
            samples.add(view, start + index[seen], colors, quality.astype(np.float32), sharpness.astype(np.float32))
    samples.weights *= focus_factors(samples.sharpness, samples.views, points, extent)
    return samples


class _ViewMaps(NamedTuple):
    """Depth and confidence maps of a view, and their intrinsics, at the resolution for visibility tests."""

    distance: Float32[np.ndarray, "h w"]
    """Distances to the surface along the pixels' rays; zero where they miss it."""
    weight: Float32[np.ndarray, "h w"]
    """Confidence, which falls to zero at silhouettes and depth discontinuities."""
    K: Float[np.ndarray, "3 3"]


def _view_maps(photograph: Photograph, rays: RayCaster) -> _ViewMaps:
    height, width = photograph.weight.shape
    area = height * width
    scale = float(np.sqrt(np.clip(area, *_PIXELS) / area))
    size = (round(width * scale), round(height * scale))
    weight = cv2.resize(photograph.weight, size, interpolation=cv2.INTER_NEAREST)
    K = resample_intrinsics(photograph.K, (width, height), size)
    distance = rays.cast(*pixel_rays(K, photograph.c2w, *size)).distance.reshape(weight.shape)
    hit = np.isfinite(distance)
    distance[~hit] = 0
    neighborhood = np.ones((3, 3), np.uint8)
    step = cv2.dilate(distance, neighborhood) - cv2.erode(distance, neighborhood)
    continuous = hit & (weight > 0) & (step < MAX_DEPTH_STEP / K[0, 0] * distance)
    border = cv2.distanceTransform(np.pad(continuous, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    # In pixels of the photograph or of the maps, whichever are larger: they mix what lies on both sides.
    border *= min(1.0, photograph.image.shape[1] / width) / scale
    return _ViewMaps(distance, weight * ((border - 1) / _FEATHER_PX).clip(0, 1), K)


def bilinear(image: np.ndarray, x: Float32[np.ndarray, " n"], y: Float32[np.ndarray, " n"]) -> np.ndarray:
    """Bilinear values (n, ...) of an image at pixels; outside of it, those of its border."""
    columns = 4096  # OpenCV's maps have sides below 32768
    rows = max(-(-len(x) // columns), 1)

    def grid(values: np.ndarray, limit: int) -> np.ndarray:
        padded = np.zeros(rows * columns, np.float32)
        padded[: len(values)] = np.nan_to_num(values).clip(-1, limit)
        return padded.reshape(rows, columns)

    height, width = image.shape[:2]
    found = cv2.remap(image, grid(x, width), grid(y, height), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return found.reshape(rows * columns, *image.shape[2:])[: len(x)]

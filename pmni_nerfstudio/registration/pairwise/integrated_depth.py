# SPDX-License-Identifier: Apache-2.0
"""Integrated depth maps of all views, in a frame about the object, and the levels of their image pyramid."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pmni_nerfstudio.geometry.camera_rings import OBJECT_RADIUS
from pmni_nerfstudio.geometry.cameras import pixel_directions, pixel_grid
from pmni_nerfstudio.geometry.hull import mask_distances
from pmni_nerfstudio.registration.views import Views

Integrate = Callable[
    [Float[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"], Float[np.ndarray, "3 3"]], Float[np.ndarray, "h w"]
]
"""Normal integration: normals (OpenCV camera axes, zero in holes), mask and K to z depth up to scale, NaN outside the
mask."""


KNOWN = 5
"""Channel of `PyramidLevel.table` that exists if there are holes."""


@dataclass(frozen=True, eq=False)
class IntegratedDepthMaps:
    """Views at the working resolution with depth maps integrated from their normals.

    Each view has its own object frame: the axes of its camera, the origin at the estimated center of the object (on the
    mean ray through the mask, at the depth of the mask's contour), and about the object's radius as unit.
    """

    views: Views
    depths: Float[np.ndarray, "n h w"]
    """z depth in the object frame's unit, float32, continued over holes; NaN outside the mask."""
    centers: Float[np.ndarray, "n 3"]
    """Origin of the object frame in camera coordinates, in its unit."""
    distance: float
    """Distance from camera to object center, in the object frame's unit."""
    contour_distances: Float[np.ndarray, "n h w"]
    """Signed distance to the mask's contour, in the object frame's unit, negative inside."""

    def __len__(self) -> int:
        return len(self.views)


def at_working_resolution(views: Views, longest_side: int, max_pixels: int) -> Views:
    """Views strided to the working resolution.

    The views are not smoothed: integration would turn a blurred edge between two faces into a wrong angle between them.

    Args:
        views: views at any resolution.
        longest_side: approximate longest side of the maps, in pixels.
        max_pixels: largest mean number of mask pixels per view; lowers the resolution where the object fills the image.
    """
    step = max(1, round(max(views.width, views.height) / longest_side))
    pixels = float(views.masks.sum(axis=(1, 2)).mean())
    return views.strided(max(step, math.ceil(math.sqrt(pixels / max_pixels))))


def integrate_views(views: Views, integrate: Integrate) -> IntegratedDepthMaps:
    """Integrate the normals of all views and estimate the object's center in each.

    Args:
        views: views at the working resolution.
        integrate: method of normal integration.
    """
    n, height, width = views.masks.shape
    distances_px = mask_distances(views.masks)
    beyond_px = distances_px if views.unknown is None else mask_distances(views.possible)
    rays = _pixel_rays(views)
    depths = np.full((n, height, width), np.nan, np.float32)
    centers, radius = np.empty((n, 3)), np.empty(n)
    with ThreadPoolExecutor(max_workers=2) as pool:
        integrated = list(pool.map(integrate, views.normals, views.masks, views.K))
    for i, depth in enumerate(integrated):
        mask = views.masks[i]
        # A solid's contour lies about as deep as its center; the median ignores contours of parts in front.
        depths[i] = depth / np.nanmedian(depth[mask & (distances_px[i] > -1.5)])
        centers[i] = rays[i][mask].mean(axis=0)
        radius[i] = np.linalg.norm(rays[i][mask] - centers[i], axis=1).max()
    distance = OBJECT_RADIUS / float(radius.max())
    footprint = distance / views.focal[:, None, None]
    contour_distances = (footprint * beyond_px).astype(np.float32)
    return IntegratedDepthMaps(views, distance * depths, distance * centers, distance, contour_distances)


def _pixel_rays(views: Views) -> Float[np.ndarray, "n h w 3"]:
    """Camera-space rays of depth 1 through all pixels."""
    pixels = pixel_grid(views.width, views.height)
    return np.stack([pixel_directions(K, pixels) for K in views.K])


@dataclass(frozen=True, eq=False)
class PyramidLevel:
    """Integrated depth maps and sampled surface points at one resolution; float32 tensors."""

    table: Float[Tensor, "pixels channels"]
    """Maps of all views, row by row: normal (camera axes), z depth, signed distance to the contour (object frame's
    unit). Normals and depths extend a pixel or two beyond the mask, so that interpolation at its rim is sound. A sixth
    channel exists only if any view has holes: 0 in holes, whose normals are unknown, 1 elsewhere."""
    height: int
    width: int
    K: Float[Tensor, "n 3 3"]
    centers: Float[Tensor, "n 3"]
    """Origins of the object frames in camera coordinates."""
    pixel: float
    """Size of a pixel of the working resolution at the object, in the object frame's unit."""
    points: Float[Tensor, "n p 3"]
    """Surface points in the object frames."""
    normals: Float[Tensor, "n p 3"]
    """Normals at the points, camera axes."""
    weights: Float[Tensor, "n p"]
    """Weights of the points, 0 to 1, by `facing_weight`; 0 pads views with fewer points."""

    def thinned(self, points: int) -> PyramidLevel:
        """The level with fewer points per view; a random selection, since the points are in random order."""
        kept = slice(points)
        return replace(self, points=self.points[:, kept], normals=self.normals[:, kept], weights=self.weights[:, kept])

    def subset(self, views: Int[np.ndarray, " m"]) -> PyramidLevel:
        """The level of some views, in the given order."""
        index = torch.from_numpy(views)
        rows = self.table.view(len(self.points), -1, self.table.shape[1])
        return replace(
            self,
            table=rows[index].reshape(-1, self.table.shape[1]),
            K=self.K[index],
            centers=self.centers[index],
            points=self.points[index],
            normals=self.normals[index],
            weights=self.weights[index],
        )


def make_level(maps: IntegratedDepthMaps, step: int, points: int, rng: np.random.Generator) -> PyramidLevel:
    """Blur and stride the maps, and sample surface points.

    Args:
        maps: maps at the working resolution.
        step: stride of the level in pixels.
        points: largest number of points per view.
        rng: random generator of the points.
    """
    views = maps.views
    sigma = max(1.0, 0.6 * step)
    rows = []
    each = zip(views.normals, views.masks, views.valid, maps.depths, maps.contour_distances)
    for normals, mask, valid, depth, contour_distance in each:
        weight = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma)
        n = cv2.GaussianBlur(normals, (0, 0), sigma)
        n /= np.maximum(np.linalg.norm(n, axis=-1, keepdims=True), 1e-9)
        z = cv2.GaussianBlur(np.where(mask, depth, 0), (0, 0), sigma) / np.maximum(weight, 1e-9)
        z = np.where(mask, depth, np.where(weight > 1e-4, z, maps.distance))
        if step == 1:
            n = np.where(valid[..., None], normals, n)
        channels = [n, z[..., None], contour_distance[..., None]]
        if views.has_holes:
            # Where half of the blurred normals exist, their mean is as good as elsewhere.
            share = cv2.GaussianBlur(valid.astype(np.float32), (0, 0), sigma) / np.maximum(weight, 1e-9)
            channels.append(np.where(mask, (2 * share).clip(0, 1), 1)[..., None])
        rows.append(np.concatenate(channels, axis=-1)[::step, ::step])
    table = np.stack(rows).astype(np.float32)
    n, height, width = table.shape[:3]
    small = views.strided(step)
    rays = _pixel_rays(small)
    sampled_points = np.zeros((n, points, 3), np.float32)
    sampled_normals, weights = np.zeros((n, points, 3), np.float32), np.zeros((n, points), np.float32)
    for i in range(n):
        pixels = np.argwhere(small.valid[i])
        pixels = pixels[rng.permutation(len(pixels))[:points]]
        y, x = pixels.T
        camera = rays[i, y, x] * table[i, y, x, 3:4]
        normals = table[i, y, x, :3]
        cosine = -(normals * camera).sum(axis=1) / np.linalg.norm(camera, axis=1)
        count = len(pixels)
        sampled_points[i, :count] = camera - maps.centers[i]
        sampled_normals[i, :count] = normals
        weights[i, :count] = facing_weight(cosine)
    # Points of weight zero go last, and as many as all views have are dropped.
    kept = max(1, int((weights > 0).sum(axis=1).max()))
    order = np.argsort(weights <= 0, axis=1, kind="stable")[:, :kept, None]
    return PyramidLevel(
        table=torch.from_numpy(table.reshape(-1, table.shape[-1])),
        height=height,
        width=width,
        K=torch.from_numpy(small.K).float(),
        centers=torch.from_numpy(maps.centers).float(),
        pixel=maps.distance / float(np.median(views.focal)),
        points=torch.from_numpy(np.take_along_axis(sampled_points, order, axis=1)),
        normals=torch.from_numpy(np.take_along_axis(sampled_normals, order, axis=1)),
        weights=torch.from_numpy(np.take_along_axis(weights, order[..., 0], axis=1)),
    )


def facing_weight(cosine):
    """Weight of a surface point by the cosine between its normal and the direction to the camera.

    0 up to a cosine of 0.1, 1 from 0.4 on, linear in between. NumPy arrays and tensors keep their type.
    """
    return ((cosine - 0.1) / 0.3).clip(0, 1)

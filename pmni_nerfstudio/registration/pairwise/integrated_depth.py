# SPDX-License-Identifier: Apache-2.0
"""Reliefs: each view's normals with the depth that they integrate to, in a frame about the object, coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pmni_nerfstudio.geometry.camera_rings import OBJECT_RADIUS
from pmni_nerfstudio.geometry.hull import mask_distances
from pmni_nerfstudio.registration.views import Views

Integrate = Callable[[Float[np.ndarray, "h w 3"], np.ndarray, Float[np.ndarray, "3 3"]], Float[np.ndarray, "h w"]]
"""Normals (OpenCV axes), mask, K to z depth up to a factor, NaN off the mask."""


@dataclass(frozen=True, eq=False)
class Reliefs:
    """Views at a working resolution, and their depths.

    A view's object frame has the axes of its camera, its origin where the view believes the object's middle to be
    (along the ray through the mask's centroid, as deep as the outline), and about the object's size as its unit.
    """

    views: Views
    depths: Float[np.ndarray, "n h w"]
    """z in camera axes, float32, in the object frame's unit; NaN off the mask."""
    centres: Float[np.ndarray, "n 3"]
    """The object frame's origin in camera axes, float64, in the object frame's unit."""
    distance: float
    """From the cameras to the object's middle, in the object frame's unit."""
    outside: Float[np.ndarray, "n h w"]
    """Signed distance to the mask's outline, in the object frame's unit, negative inside."""

    def __len__(self) -> int:
        return len(self.views)


def working_views(views: Views, longest_side: int, most_pixels: int) -> Views:
    """The views at about a resolution, or a lower one where the object fills the frame: every so many pixels.

    Without a blur: integrated, a blurred edge between two faces is no edge, and turns them against each other.
    """
    every = max(1, round(max(views.width, views.height) / longest_side))
    pixels = float(views.masks.sum(axis=(1, 2)).mean())
    return views.every(max(every, math.ceil(math.sqrt(pixels / most_pixels))))


def make_reliefs(views: Views, integrate: Integrate) -> Reliefs:
    """Integrate the normals of all views and find the object's middle in each.

    Args:
        views: at the working resolution (`working_views`).
        integrate: normals to depth.
    """
    n, height, width = views.masks.shape
    outside_px = mask_distances(views.masks)
    rays = pixel_directions(views)
    depths = np.full((n, height, width), np.nan, np.float32)
    middles, reach = np.empty((n, 3)), np.empty(n)
    with ThreadPoolExecutor(max_workers=2) as pool:
        integrals = list(pool.map(integrate, views.normals, views.masks, views.K))
    for i, depth in enumerate(integrals):
        mask = views.masks[i]
        # The outline of a solid lies about as deep as its middle. A median: parts before others have outlines, too.
        depths[i] = depth / np.nanmedian(depth[mask & (outside_px[i] > -1.5)])
        middles[i] = rays[i][mask].mean(axis=0)
        reach[i] = np.linalg.norm(rays[i][mask] - middles[i], axis=1).max()
    distance = OBJECT_RADIUS / float(reach.max())
    footprint = distance / views.focal[:, None, None]
    return Reliefs(views, distance * depths, distance * middles, distance, (footprint * outside_px).astype(np.float32))


def pixel_directions(views: Views) -> Float[np.ndarray, "n h w 3"]:
    """Camera points at depth 1 of all pixel centres."""
    x, y = np.meshgrid(np.arange(views.width), np.arange(views.height))
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1).astype(np.float64)
    return np.einsum("nij,hwj->nhwi", np.linalg.inv(views.K), pixels)


@dataclass(frozen=True, eq=False)
class ReliefLevel:
    """What residuals read at one resolution; float32 tensors."""

    table: Float[Tensor, "pixels 5"]
    """Of every pixel of every view, row by row: normal (camera axes), z depth, signed distance to the outline (object
    frame's unit). Normals and depths go on for a pixel or two off the mask, so that lookups at its rim are sound."""
    height: int
    width: int
    K: Float[Tensor, "n 3 3"]
    centres: Float[Tensor, "n 3"]
    pixel: float
    """The working resolution's pixel at the object, in the object frame's unit."""
    points: Float[Tensor, "n p 3"]
    """Surface points in the object frames."""
    normals: Float[Tensor, "n p 3"]
    """At the points, camera axes."""
    weights: Float[Tensor, "n p"]
    """Of the points, 0 to 1: less where the surface turns away from its view; 0 fills up views with fewer points."""


def make_level(reliefs: Reliefs, step: int, points: int, rng: np.random.Generator) -> ReliefLevel:
    """Every step-th pixel of blurred maps, and points drawn from them.

    Args:
        reliefs: at the working resolution.
        step: 1 for that resolution.
        points: at most so many a view.
        rng: draws the points.
    """
    views = reliefs.views
    sigma = max(1.0, 0.6 * step)
    rows = []
    for normals, mask, depth, outside in zip(views.normals, views.masks, reliefs.depths, reliefs.outside):
        weight = mask.astype(np.float32)
        share = cv2.GaussianBlur(weight, (0, 0), sigma)
        n = cv2.GaussianBlur(normals, (0, 0), sigma)
        n /= np.maximum(np.linalg.norm(n, axis=-1, keepdims=True), 1e-9)
        z = cv2.GaussianBlur(np.where(mask, depth, 0), (0, 0), sigma) / np.maximum(share, 1e-9)
        z = np.where(mask, depth, np.where(share > 1e-4, z, reliefs.distance))
        if step == 1:
            n = np.where(mask[..., None], normals, n)
        rows.append(np.concatenate([n, z[..., None], outside[..., None]], axis=-1)[::step, ::step])
    stacked = np.stack(rows).astype(np.float32)
    n, height, width = stacked.shape[:3]
    small = views.every(step)
    rays = pixel_directions(small)
    chosen_points = np.zeros((n, points, 3), np.float32)
    chosen_normals, weights = np.zeros((n, points, 3), np.float32), np.zeros((n, points), np.float32)
    for i in range(n):
        where = np.argwhere(small.masks[i])
        where = where[rng.permutation(len(where))[:points]]
        y, x = where.T
        camera = rays[i, y, x] * stacked[i, y, x, 3:4]
        normals = stacked[i, y, x, :3]
        facing = -(normals * camera).sum(axis=1) / np.linalg.norm(camera, axis=1)
        count = len(where)
        chosen_points[i, :count] = camera - reliefs.centres[i]
        chosen_normals[i, :count] = normals
        weights[i, :count] = facing_weight(facing)
    most = max(1, int((weights > 0).sum(axis=1).max()))
    order = np.argsort(weights <= 0, axis=1, kind="stable")[:, :most, None]
    return ReliefLevel(
        table=torch.from_numpy(stacked.reshape(-1, 5)),
        height=height,
        width=width,
        K=torch.from_numpy(small.K).float(),
        centres=torch.from_numpy(reliefs.centres).float(),
        pixel=reliefs.distance / float(np.median(views.focal)),
        points=torch.from_numpy(np.take_along_axis(chosen_points, order, axis=1)),
        normals=torch.from_numpy(np.take_along_axis(chosen_normals, order, axis=1)),
        weights=torch.from_numpy(np.take_along_axis(weights, order[..., 0], axis=1)),
    )


def facing_weight(cosine):
    """How far a surface that a view sees at this cosine is to be believed: 0 up to .1, 1 from .4 on."""
    return ((cosine - 0.1) / 0.3).clip(0, 1)

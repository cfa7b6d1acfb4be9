# SPDX-License-Identifier: Apache-2.0
"""Visual hull of silhouettes as a signed distance on a grid (Laurentini, "The visual hull concept", PAMI 1994)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pmni_nerfstudio.geometry.interpolation import grid_points


def visual_hull(
    masks: Bool[np.ndarray, "n h w"],
    K: Float[np.ndarray, "n 3 3"],
    c2w: Float[np.ndarray, "n 4 4"],
    resolution: int = 65,
    votes: int = 1,
) -> Float[Tensor, "r r r"]:
    """Signed distance to the visual hull, cut off by the unit sphere, at the vertices of a grid over [-1, 1]^3.

    Each view bounds the distance from below: the distance in pixels between a point's projection and the silhouette,
    times the size of a pixel at the point's depth. The hull's distance is the largest bound over the views, or the
    k-th largest with `votes` = k, so that k - 1 bad masks or poses cannot carve the object away. Points that project
    outside the image take the value of the nearest pixel.

    Args:
        masks: foreground of each view.
        K: intrinsics in pixels, pixel centers at integers.
        c2w: camera-to-world, OpenCV axes, unit-sphere world.
        resolution: vertices per axis.
        votes: 1 for the exact hull, more for unreliable masks or poses.

    Raises:
        ValueError: `votes` is not between 1 and the number of views.
    """
    points = grid_points(resolution)
    outside = torch.from_numpy(hull_distance(points.view(-1, 3).numpy(), mask_distances(masks), K, c2w, votes))
    return torch.maximum(outside.view(points.shape[:-1]), points.norm(dim=-1) - 1.0)


def hull_distance(
    points: Float[np.ndarray, "p 3"],
    distances_px: Float[np.ndarray, "n h w"],
    K: Float[np.ndarray, "n 3 3"],
    c2w: Float[np.ndarray, "n 4 4"],
    votes: int = 1,
) -> Float[np.ndarray, " p"]:
    """Signed distance of world points to the visual hull, as in `visual_hull` but without the unit sphere; float32.

    Args:
        points: world coordinates.
        distances_px: `mask_distances` of the views.
        K: intrinsics in pixels, pixel centers at integers.
        c2w: camera-to-world, OpenCV axes.
        votes: rank of the view whose distance counts, the largest first.

    Raises:
        ValueError: `votes` is not between 1 and the number of views.
    """
    if not 1 <= votes <= len(distances_px):
        raise ValueError(f"votes: {votes} is not between 1 and the number of views, {len(distances_px)}")
    height, width = distances_px.shape[1:]
    world = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32)).clone()
    w2c = torch.from_numpy(np.linalg.inv(c2w)).float()
    intrinsics = torch.from_numpy(np.asarray(K)).float()
    largest = torch.full((votes, len(world)), -torch.inf)
    for i, distance_px in enumerate(distances_px):
        camera = world @ w2c[i, :3, :3].T + w2c[i, :3, 3]
        depth = camera[:, 2].clamp(min=1e-6)
        pixels = (camera @ intrinsics[i].T)[:, :2] / depth[:, None]
        normalized = 2 * pixels / torch.tensor([width - 1.0, height - 1.0]) - 1
        sampled_px = F.grid_sample(
            torch.from_numpy(distance_px)[None, None], normalized[None, None], align_corners=True, padding_mode="border"
        ).view(-1)
        distance = sampled_px * depth / (0.5 * (intrinsics[i, 0, 0] + intrinsics[i, 1, 1]))
        # Insertion into the sorted k largest so far: memory does not grow with the number of views.
        for rank in range(votes):
            larger = torch.maximum(largest[rank], distance)
            distance = torch.minimum(largest[rank], distance)
            largest[rank] = larger
    return largest[-1].numpy()


def mask_distances(masks: Bool[np.ndarray, "n h w"]) -> Float[np.ndarray, "n h w"]:
    """Signed distance transforms of all masks; see `mask_distance_px`."""
    return np.stack([mask_distance_px(mask) for mask in masks])


def mask_distance_px(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Signed distance of every pixel center to the mask's contour, in pixels, negative inside.

    The contour runs half-way between a foreground pixel and its background neighbor. The image border is not part
    of it: an object that the border cuts continues beyond.
    """
    foreground = mask.astype(np.uint8)
    # OpenCV measures to the nearest pixel center of the other kind, half a pixel beyond the contour.
    inside = cv2.distanceTransform(foreground, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(1 - foreground, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.where(mask, 0.5 - _exact_distance(inside), _exact_distance(outside) - 0.5).astype(np.float32)


def _exact_distance(distance_px: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Distances between pixel centers to full precision: square roots of integers.

    The last bit of OpenCV's single-precision root changes from call to call, which would make training irreproducible.
    """
    return np.sqrt(np.rint(np.square(distance_px, dtype=np.float64)))

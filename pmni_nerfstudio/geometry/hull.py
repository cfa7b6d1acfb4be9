# SPDX-License-Identifier: Apache-2.0
"""The visual hull of the masks as a signed distance on a grid: the surface that training starts from."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def mask_distance_px(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Signed distance of every pixel centre to the mask's outline, in pixels, negative inside.

    The outline runs half-way between a foreground pixel and its background neighbour. The frame's edge is no
    outline: an object cut by the frame goes on beyond it.
    """
    foreground = mask.astype(np.uint8)
    # The exact transform measures to the nearest pixel centre of the other kind, half a pixel past the outline.
    inside = cv2.distanceTransform(foreground, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(1 - foreground, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.where(mask, 0.5 - _exact(inside), _exact(outside) - 0.5).astype(np.float32)


def _exact(distance_px: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """The root of the whole number that a squared distance between pixels is. OpenCV's root is one of single precision
    whose last bit changes from call to call, and with it every bit of the training that starts from here."""
    return np.sqrt(np.rint(np.square(distance_px, dtype=np.float64)))


def grid_points(resolution: int) -> Float[Tensor, "n3 3"]:
    """Vertices of a regular grid over [-1, 1]^3, x slowest: (resolution^3, 3)."""
    axis = torch.linspace(-1.0, 1.0, resolution)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)


def visual_hull(
    masks: Bool[np.ndarray, "n h w"],
    K: Float[np.ndarray, "n 3 3"],
    c2w: Float[np.ndarray, "n 4 4"],
    resolution: int = 65,
    votes: int = 1,
) -> Float[Tensor, "r r r"]:
    """Signed distance to the visual hull on the vertices of a grid over [-1, 1]^3 (unit-sphere world).

    A point is as far outside as the view that sees it farthest from its mask says: the distance in pixels times the
    pixel's footprint there. With `votes` > 1 the k-th largest distance counts instead, so that k - 1 bad masks or
    poses cannot carve the object away. Points that project off the frame take the value of the nearest frame pixel.
    The hull is closed by the unit sphere, which holds the object. (Laurentini, "The visual hull concept", 1994.)

    Args:
        masks: foreground of each view.
        K: intrinsics in pixels, integer pixel centres.
        c2w: camera-to-world, OpenCV axes, unit-sphere world.
        resolution: vertices per axis.
        votes: 1 for the exact hull, more for doubtful masks or poses.

    Raises:
        ValueError: `votes` is not between 1 and the number of views.
    """
    points = grid_points(resolution)
    largest = hull_at(points.numpy(), mask_distances(masks), K, c2w, votes)
    sdf = torch.maximum(torch.from_numpy(largest), points.norm(dim=-1) - 1.0)
    return sdf.view(resolution, resolution, resolution)


def mask_distances(masks: Bool[np.ndarray, "n h w"]) -> Float[np.ndarray, "n h w"]:
    """`mask_distance_px` of every view."""
    return np.stack([mask_distance_px(mask) for mask in masks])


def hull_at(
    points: Float[np.ndarray, "p 3"],
    distances_px: Float[np.ndarray, "n h w"],
    K: Float[np.ndarray, "n 3 3"],
    c2w: Float[np.ndarray, "n 4 4"],
    votes: int = 1,
) -> Float[np.ndarray, " p"]:
    """How far points are outside the visual hull, world units, float32; see `visual_hull`, less the unit sphere.

    Args:
        points: world.
        distances_px: `mask_distances`.
        K: intrinsics in pixels, integer pixel centres.
        c2w: camera-to-world, OpenCV axes.
        votes: the k-th largest distance counts.

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
        pixel = (camera @ intrinsics[i].T)[:, :2] / depth[:, None]
        normalised = 2 * pixel / torch.tensor([width - 1.0, height - 1.0]) - 1
        looked_up = F.grid_sample(
            torch.from_numpy(distance_px)[None, None], normalised[None, None], align_corners=True, padding_mode="border"
        ).view(-1)
        distance = looked_up * depth / (0.5 * (intrinsics[i, 0, 0] + intrinsics[i, 1, 1]))
        # Running k largest, in order: at most `votes` values a point are kept, whatever the number of views.
        for rank in range(votes):
            larger = torch.maximum(largest[rank], distance)
            distance = torch.minimum(largest[rank], distance)
            largest[rank] = larger
    return largest[-1].numpy()

# SPDX-License-Identifier: Apache-2.0
"""Silhouette residuals: the ray through a point of a mask's contour touches the surface, so its least SDF is zero."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float
from skimage.measure import find_contours

from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.geometry.interpolation import lookup_volume
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_COARSE_SAMPLES, _FINE_SAMPLES = 65, 9
"""Samples along a ray, and again about the smallest of them."""


def contour(
    mask: Bool[np.ndarray, "h w"], margin_px: float = 1.5, unknown: Bool[np.ndarray, "h w"] | None = None
) -> Float[np.ndarray, "p 2"]:
    """Sub-pixel contour of a mask: points (x, y), about a pixel apart, pixel centers at integers.

    A slight blur smooths the staircase of the binary mask without moving its contour on average. Points near the image
    border are dropped, since the border may cut the object, and so are contours of fewer than 12 points: small holes and
    specks are more often errors of the mask than shape. Where the mask borders on unknown pixels, something else cuts the
    object off, and its own outline is not seen.
    """
    smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7, borderType=cv2.BORDER_REPLICATE)
    height, width = mask.shape
    curves = [curve[:, ::-1] for curve in find_contours(smooth, 0.5) if len(curve) >= 12]
    if not curves:
        return np.zeros((0, 2))
    points = np.concatenate(curves)
    upper = np.array([width, height]) - 1 - margin_px
    points = points[((points >= margin_px) & (points <= upper)).all(axis=1)]
    if unknown is None:
        return points
    near = cv2.dilate(unknown.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    column, row = np.rint(points).astype(int).T
    return points[~near[row, column]]


def contours(views: Views, max_points: int) -> list[Float[np.ndarray, "p 2"]]:
    """Contours of all masks, each thinned to at most `max_points` points."""
    out = []
    for i, mask in enumerate(views.masks):
        points = contour(mask, unknown=None if views.unknown is None else views.unknown[i])
        out.append(points[:: max(1, -(-len(points) // max_points))])
    return out


@dataclass(frozen=True, eq=False)
class RimPoints:
    """Points where the rays through one view's contour touch the surface, or come nearest to it."""

    points: Float[np.ndarray, "p 3"]
    """World coordinates."""
    sdf: Float[np.ndarray, " p"]
    """Signed distance there: the least along the ray."""
    normals: Float[np.ndarray, "p 3"]
    """Unit gradients of the signed distance, world axes."""


def rim_points(
    surface: Surface, pixels: Float[np.ndarray, "p 2"], K: Float[np.ndarray, "3 3"], poses: Poses, view: int
) -> RimPoints:
    """Find the least signed distance along the ray of each contour pixel, within the unit sphere."""
    directions = pixel_directions(K, pixels) @ poses.R[view]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    origin = -poses.t[view] @ poses.R[view]
    middle = -(directions @ origin)
    # Rays that miss the sphere are sampled at their point nearest to its center; lookups extend beyond the volume.
    half = np.sqrt(np.maximum(1 - ((origin + middle[:, None] * directions) ** 2).sum(axis=1), 0.0))
    volume = surface.lookups
    offsets = np.linspace(-1, 1, _COARSE_SAMPLES)
    spacing = 2 * half / (_COARSE_SAMPLES - 1)
    distances = middle[:, None] + half[:, None] * offsets
    rows, nearest = np.arange(len(pixels)), middle
    for _ in range(2):
        points = origin + distances[..., None] * directions[:, None]
        values = lookup_volume(volume[:1], points.reshape(-1, 3))[:, 0].reshape(distances.shape)
        nearest = distances[rows, values.argmin(axis=1)]
        distances = nearest[:, None] + spacing[:, None] * np.linspace(-1, 1, _FINE_SAMPLES)
    points = origin + nearest[:, None] * directions
    values = lookup_volume(volume, points).astype(np.float64)
    gradients = values[:, 1:]
    normals = gradients / np.maximum(np.linalg.norm(gradients, axis=1, keepdims=True), 1e-6)
    return RimPoints(points, values[:, 0], normals)


def silhouette_jacobian(rim: RimPoints, poses: Poses, view: int) -> Float[np.ndarray, "p 6"]:
    """Derivatives of the least signed distances by the view's twist (see `Poses.retract`).

    The distance is minimal along the ray, so only the motion of the rim point, fixed to the camera, matters.
    """
    normals = rim.normals @ poses.R[view].T
    about_object = rim.points @ poses.R[view].T
    return -np.concatenate([np.cross(about_object, normals), normals], axis=1)


def silhouette_by_intrinsics(
    rim: RimPoints, poses: Poses, view: int, K: Float[np.ndarray, "3 3"], unit_px: float
) -> Float[np.ndarray, "p 3"]:
    """Derivatives of the least signed distances by the logarithm of the focal length and by the principal point.

    The pixel stays and its ray turns: at the rim point's depth, the ray moves by the opposite of the displacement that
    the point's projection would have.

    Args:
        rim: points where the rays touch the surface.
        poses: poses of all views.
        view: index of the view.
        K: its intrinsics in pixels.
        unit_px: unit of the principal point's shift, in pixels.
    """
    normals = rim.normals @ poses.R[view].T
    x, y, z = poses.to_camera(view, rim.points).T
    by_y = -unit_px * z / K[1, 1]
    by_x = -unit_px * z / K[0, 0]
    return np.stack(
        [
            -(normals[:, 0] * x + normals[:, 1] * y),
            normals[:, 0] * by_x,
            by_y * (normals[:, 1] - normals[:, 0] * K[0, 1] / K[0, 0]),
        ],
        axis=1,
    )

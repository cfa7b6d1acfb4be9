# SPDX-License-Identifier: Apache-2.0
"""Silhouettes: the ray of a contour's pixel grazes the surface, so the least signed distance along it is zero."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float
from skimage.measure import find_contours

from pmni_nerfstudio.geometry.interpolation import lookup_volume
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

_COARSE, _FINE = 65, 9
"""Places tried along a ray, and again about the best of them."""


def contour(mask: Bool[np.ndarray, "h w"], margin_px: float = 1.5) -> Float[np.ndarray, "p 2"]:
    """The outline of a mask, sub-pixel (x, y; pixel centres at integers), about a pixel between points.

    A binary outline steps from pixel to pixel; a slight blur makes it smooth and leaves it, on the mean, where it is.
    Where the frame cuts the object there is no outline. Outlines shorter than a dozen pixels are dropped: holes and
    specks of a mask are more often faults than shape.
    """
    smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7, borderType=cv2.BORDER_REPLICATE)
    height, width = mask.shape
    curves = [curve[:, ::-1] for curve in find_contours(smooth, 0.5) if len(curve) >= 12]
    if not curves:
        return np.zeros((0, 2))
    points = np.concatenate(curves)
    upper = np.array([width, height]) - 1 - margin_px
    return points[((points >= margin_px) & (points <= upper)).all(axis=1)]


def contours(views: Views, most: int) -> list[Float[np.ndarray, "p 2"]]:
    """The views' outlines, thinned to at most so many points each."""
    out = []
    for mask in views.masks:
        points = contour(mask)
        out.append(points[:: max(1, -(-len(points) // most))])
    return out


@dataclass(frozen=True, eq=False)
class Grazing:
    """Where the rays of one view's contour come nearest to the surface."""

    points: Float[np.ndarray, "p 3"]
    """World."""
    sdf: Float[np.ndarray, " p"]
    normals: Float[np.ndarray, "p 3"]
    """Unit gradients, world."""


def graze(surface: Surface, pixels: Float[np.ndarray, "p 2"], K: np.ndarray, poses: Poses, view: int) -> Grazing:
    """Least signed distance along each pixel's ray within the unit sphere."""
    directions = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(K).T @ poses.R[view]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    origin = -poses.t[view] @ poses.R[view]
    middle = -(directions @ origin)
    # Rays that miss the sphere are asked at their nearest place: the volume goes on beyond it.
    half = np.sqrt(np.maximum(1 - ((origin + middle[:, None] * directions) ** 2).sum(axis=1), 0.0))
    volume = surface.lookups
    offsets = np.linspace(-1, 1, _COARSE)
    spacing = 2 * half / (_COARSE - 1)
    distances = middle[:, None] + half[:, None] * offsets
    rows, at = np.arange(len(pixels)), middle
    for _ in range(2):
        points = origin + distances[..., None] * directions[:, None]
        values = lookup_volume(volume[:1], points.reshape(-1, 3))[:, 0].reshape(distances.shape)
        best = values.argmin(axis=1)
        at = distances[rows, best]
        distances = at[:, None] + spacing[:, None] * np.linspace(-1, 1, _FINE)
    points = origin + at[:, None] * directions
    looked_up = lookup_volume(volume, points).astype(np.float64)
    gradients = looked_up[:, 1:]
    normals = gradients / np.maximum(np.linalg.norm(gradients, axis=1, keepdims=True), 1e-6)
    return Grazing(points, looked_up[:, 0], normals)


def silhouette_jacobian(grazing: Grazing, poses: Poses, view: int) -> Float[np.ndarray, "p 6"]:
    """Derivative of the least signed distances by the view's twist (see `Poses.retract`).

    Along the ray the distance is at its minimum, so only the motion across counts: that of the fixed camera point.
    """
    normals = grazing.normals @ poses.R[view].T
    about_object = grazing.points @ poses.R[view].T
    return -np.concatenate([np.cross(about_object, normals), normals], axis=1)

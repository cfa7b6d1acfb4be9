# SPDX-License-Identifier: Apache-2.0
"""Views of a single object among several: its mask, and the pixels where something else may hide it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import trimesh
from jaxtyping import Bool, Float, Int

from pmni_nerfstudio.geometry.cameras import pixel_rays
from pmni_nerfstudio.geometry.object_sphere import sphere_similarity
from pmni_nerfstudio.geometry.ray_casting import RayCaster

_MARGIN = 0.06
"""Distance from the outline of the object's part of the common surface, as a share of its diameter in the image, within which
the object may continue behind others."""
_LEAST_MARGIN_PX = 2
_LEAST_PIXELS = 20
"""Views that show fewer pixels of an object are left out for it: they hold hardly any normals."""
_ROOM = 1.08
"""Radius of an object's sphere, in radii of its part of the common surface, which may be too small where it was hidden."""


@dataclass(frozen=True, eq=False)
class ObjectViews:
    """Masks of one of several objects in the views that show it, and a sphere around it."""

    number: int
    """Number of the object."""
    views: list[int]
    """Indices of the n views that show it."""
    masks: Bool[np.ndarray, "n h w"]
    """Pixels that show it."""
    unknown: Bool[np.ndarray, "n h w"]
    """Pixels of other objects, or without a label, behind which it may continue: neither object nor background."""
    sphere: Float[np.ndarray, "4 4"]
    """Similarity from a unit sphere around the object to the world of the poses."""
    hidden: Float[np.ndarray, " n"]
    """Approximate share of the object's outline that others hide in each view."""


def views_of_object(
    number: int,
    labels: Int[np.ndarray, "n h w"],
    masks: Bool[np.ndarray, "n h w"],
    part: trimesh.Trimesh,
    K: Float[np.ndarray, "n 3 3"],
    c2w: Float[np.ndarray, "n 4 4"],
) -> ObjectViews:
    """Views of one object.

    A pixel that shows another object is unknown for this one where this one's part of the common surface, with a margin,
    projects to it. Elsewhere it is background: the other views tell that the object does not reach there, and without
    that limit, an object could be hidden inside another one.

    Args:
        number: number of the object.
        labels: objects of all pixels, 0 where there is none.
        masks: pixels of any object.
        part: its part of the common surface.
        K: intrinsics in pixels, pixel centers at integers.
        c2w: camera-to-world poses, OpenCV axes, in the world of the part.
    """
    height, width = labels.shape[1:]
    rays = RayCaster(part)
    chosen = [view for view in range(len(labels)) if (labels[view] == number).sum() >= _LEAST_PIXELS]
    own, unknown = labels[chosen] == number, np.zeros((len(chosen), height, width), dtype=bool)
    hidden = np.zeros(len(chosen))
    for i, view in enumerate(chosen):
        hit = np.isfinite(rays.cast(*pixel_rays(K[view], c2w[view], width, height)).distance).reshape(height, width)
        outline = hit | own[i]
        y, x = np.nonzero(outline)
        reach = max(_LEAST_MARGIN_PX, round(_MARGIN * float(np.hypot(np.ptp(x), np.ptp(y)))))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        others = masks[view] & ~own[i]
        unknown[i] = others & (cv2.dilate(outline.astype(np.uint8), kernel) > 0)
        hidden[i] = (hit & others).sum() / max(outline.sum(), 1)
    center = part.bounds.mean(axis=0)
    radius = _ROOM * float(np.linalg.norm(part.vertices - center, axis=1).max())
    return ObjectViews(number, chosen, own, unknown, sphere_similarity(center, radius), hidden)

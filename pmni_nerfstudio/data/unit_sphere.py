# SPDX-License-Identifier: Apache-2.0
"""Unit sphere of a scene whose camera file gives none: the object's place, from the masks and the poses."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.data.packed_masks import Masks
from pmni_nerfstudio.geometry.camera_rings import radius_at_depth_1
from pmni_nerfstudio.geometry.object_sphere import centroid_rays, robust_nearest_point, sphere_similarity

_MAX_REACH = 1.2
"""Distance from the origin up to which an object counts as inside the unit sphere; poses may be rough."""
_MIN_RADIUS = 0.1
"""Radius below which an object is too small for the unit sphere."""


def fitted_sphere(
    K: Float[np.ndarray, "n 3 3"], c2w: Float[np.ndarray, "n 4 4"], masks: Masks
) -> Float[np.ndarray, "4 4"] | None:
    """Similarity from a unit sphere that holds the object to the world of the poses, as far as masks tell.

    The center is the point nearest to the rays through the masks' centroids, with little weight on the rays that miss it,
    because poses may be rough or wrong.

    Returns:
        None if the world's own unit sphere holds the object, or if most cameras do not look at one place.
    """
    rays = np.einsum("nij,nj->ni", c2w[:, :3, :3], centroid_rays(K, masks))
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    cameras = c2w[:, :3, 3]
    center = robust_nearest_point(cameras, rays)
    depth = np.einsum("ni,ni->n", center - cameras, c2w[:, :3, 2])
    facing = np.flatnonzero(depth > 0)
    if len(facing) < 0.5 * len(masks):
        return None
    radius = float(np.median([depth[i] * radius_at_depth_1(K[i], masks[i]) for i in facing]))
    if radius >= _MIN_RADIUS and float(np.linalg.norm(center)) + radius <= _MAX_REACH:
        return None
    return sphere_similarity(center, radius)

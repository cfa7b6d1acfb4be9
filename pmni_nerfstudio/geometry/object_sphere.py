# SPDX-License-Identifier: Apache-2.0
"""Position and size of the object from masks and poses: rays through the masks' centroids, and their nearest point."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.geometry.camera_rings import OBJECT_RADIUS, mask_centroid
from pmni_nerfstudio.geometry.cameras import pixel_directions

_ROUNDS = 10
"""Rounds of reweighting."""


def centroid_rays(K: Float[np.ndarray, "n 3 3"], masks: Iterable[Bool[np.ndarray, "h w"]]) -> Float[np.ndarray, "n 3"]:
    """Camera-space rays of depth 1 through the masks' centroids."""
    return np.stack([pixel_directions(k, mask_centroid(mask)) for k, mask in zip(K, masks)])


def nearest_point(
    origins: Float[np.ndarray, "n 3"],
    directions: Float[np.ndarray, "n 3"],
    weights: Float[np.ndarray, " n"] | None = None,
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " n"]]:
    """Point nearest to rays in the least-squares sense.

    Args:
        origins: origins of the rays.
        directions: their unit directions.
        weights: weight of each ray; 1 if None.

    Returns:
        The point, and its distance from each ray.
    """
    weights = np.ones(len(origins)) if weights is None else weights
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    # The weak pull towards the mean of the origins makes the point unique for parallel rays.
    pull = 1e-9 * weights.sum()
    system = np.einsum("n,nij->ij", weights, across) + pull * np.eye(3)
    right = np.einsum("n,nij,nj->i", weights, across, origins) + pull * origins.mean(axis=0)
    point = np.linalg.solve(system, right)
    return point, np.linalg.norm(np.einsum("nij,nj->ni", across, point - origins), axis=1)


def robust_nearest_point(
    origins: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, " 3"]:
    """Point nearest to most rays: rays that miss it, as of cameras with wrong poses, have little weight."""
    weights, point = np.ones(len(origins)), np.zeros(3)
    for _ in range(_ROUNDS):
        point, misses = nearest_point(origins, directions, weights)
        weights = 1.0 / (misses + 0.1 * np.median(misses) + 1e-12)
        weights /= weights.max()
    return point


def sphere_similarity(center: Float[np.ndarray, " 3"], radius: float) -> Float[np.ndarray, "4 4"]:
    """Similarity from the unit sphere to the world in which a sphere fills its radius up to OBJECT_RADIUS."""
    similarity = np.diag([radius / OBJECT_RADIUS] * 3 + [1.0])
    similarity[:3, 3] = center
    return similarity

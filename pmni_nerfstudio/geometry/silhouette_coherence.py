# SPDX-License-Identifier: Apache-2.0
"""Agreement of cameras with silhouettes and normal maps, without a surface, for a choice between candidate cameras.

Silhouettes: each ray through a silhouette has to pass through the visual hull of all silhouettes (Hernández, Schmitt and
Cipolla, "Silhouette coherence for camera calibration under circular motion", PAMI 2007). Normals: where such a ray
enters the hull, which is near the surface on convex parts, other views should see the same normal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from pmni_nerfstudio.geometry.cameras import pixel_directions, project, strided_intrinsics
from pmni_nerfstudio.geometry.object_sphere import centroid_rays, nearest_point, robust_nearest_point

MAX_VIEWS = 30
"""Largest number of views that are compared, evenly spaced; the time grows with its square."""
_RAYS_PER_VIEW = 150
_SAMPLES_PER_RAY = 96
_MAX_SIDE = 160
"""Maps with longer sides are subsampled."""
_TOLERANCE_PX = 1.0
"""Distance beyond a silhouette up to which a point counts as inside, in subsampled pixels."""
_MAX_ANGLE_DEG = 45.0
"""Larger angles between normals, as of occluded points, count no more than this."""
_REACH = 1.3
"""Half the length of the sampled part of a ray, in radii of the object."""


@dataclass(frozen=True)
class Fit:
    """Agreement of cameras with maps."""

    silhouettes: float
    """Share of the silhouettes' rays that pass through the visual hull, 0 to 1; near 1 for exact cameras."""
    normals: float
    """Agreement of compared normals: 1 without an angle between them, 0 for 45 degrees or more on average, times
    `silhouettes`; 0 without normal maps. Exact cameras reach about 0.9."""

    @property
    def score(self) -> float:
        """Both in one number."""
        return self.silhouettes + self.normals


def measure_fit(
    masks: Sequence[Bool[np.ndarray, "h w"]],
    normals: Sequence[Float[np.ndarray, "h w 3"]] | None,
    K: Float[np.ndarray, "n 3 3"],
    c2w: Float[np.ndarray, "n 4 4"],
    possible: Sequence[Bool[np.ndarray, "h w"]] | None = None,
) -> Fit:
    """Measure how well cameras fit the maps of their views; sizes may differ between views.

    Args:
        masks: silhouette of each view, not empty.
        normals: unit normals of each view in OpenCV camera axes; None to compare silhouettes alone.
        K: intrinsics in pixels, pixel centers at integers.
        c2w: rigid camera-to-world poses, OpenCV axes.
        possible: where the object may be in each view, if something else stands in front of it in places.
    """
    chosen = evenly_spaced(len(masks))
    views = [
        PosedSilhouette(
            masks[i],
            None if normals is None else normals[i],
            K[i],
            c2w[i],
            None if possible is None else possible[i],
        )
        for i in chosen
    ]
    rays = np.concatenate([centroid_rays(view.K[None], view.mask[None]) for view in views])
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    center, _ = nearest_point(c2w[chosen, :3, 3], np.einsum("nij,nj->ni", c2w[chosen, :3, :3], rays))
    coherent, angles_deg = [], [np.empty(0)]
    reach = sample_reach(views, center)
    for i, view in enumerate(views):
        points, n, on_object = view.sample(center, reach[i])
        inside = on_object
        for j, other in enumerate(views):
            if j != i:
                inside = inside & other.contains(points)
        hit = inside.any(axis=1)
        coherent.append(hit.mean())
        if normals is None:
            continue
        first = points[np.arange(len(points)), inside.argmax(axis=1)]
        for j, other in enumerate(views):
            if j == i:
                continue
            seen, n_other = other.normals_at(first, n)
            seen &= hit
            cosine = (n * n_other).sum(axis=1)[seen].clip(-1, 1)
            angles_deg.append(np.rad2deg(np.arccos(cosine)).clip(max=_MAX_ANGLE_DEG))
    silhouettes, angle_deg = float(np.mean(coherent)), np.concatenate(angles_deg)
    return Fit(silhouettes, silhouettes * (1 - float(angle_deg.mean()) / _MAX_ANGLE_DEG) if angle_deg.size else 0.0)


def evenly_spaced(count: int) -> list[int]:
    """Indices of the views that are compared, at most MAX_VIEWS of them."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_VIEWS)).round().astype(int)).tolist()


def subsampling_step(shape: tuple[int, ...]) -> int:
    """Factor by which maps of a height and width are subsampled."""
    return max(1, -(-max(shape) // _MAX_SIDE))


def object_center(views: Sequence[PosedSilhouette]) -> np.ndarray:
    """Point (3,) nearest to the rays through the centroids of most silhouettes."""
    rays = np.concatenate([centroid_rays(view.K[None], view.mask[None]) for view in views])
    c2w = np.stack([view.c2w for view in views])
    rays = np.einsum("nij,nj->ni", c2w[:, :3, :3], rays / np.linalg.norm(rays, axis=1, keepdims=True))
    return robust_nearest_point(c2w[:, :3, 3], rays)


def sample_reach(views: Sequence[PosedSilhouette], center: np.ndarray) -> np.ndarray:
    """Half the length (n,) of the part of each view's rays about the center that can be on the object.

    A close-up shows less than the object, which may be anywhere within a typical view's extent.
    """
    radii = []
    for view in views:
        spread = pixel_directions(view.K, np.stack(np.nonzero(view.mask)[::-1], axis=-1))[:, :2]
        radii.append(view.depth(center) * float(np.linalg.norm(spread - spread.mean(axis=0), axis=1).max()))
    return _REACH * np.maximum(radii, np.median(radii))


class PosedSilhouette:
    """Silhouette and camera of a view at reduced size, with its normals if they are compared."""

    def __init__(
        self,
        mask: np.ndarray,
        normals: np.ndarray | None,
        K: np.ndarray,
        c2w: np.ndarray,
        possible: np.ndarray | None = None,
    ) -> None:
        step = subsampling_step(mask.shape)
        self.mask = mask[::step, ::step]
        if not self.mask.any():
            step, self.mask = 1, mask
        self.step = step
        self.normals = None if normals is None else normals[::step, ::step]
        self.K = strided_intrinsics(K, step)
        self.c2w = c2w
        # Where something else stands in front, the object may be as well.
        reach = self.mask if possible is None else possible[::step, ::step]
        self.distance_px = np.asarray(ndimage.distance_transform_edt(~reach))

    def sampled_pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Columns and rows (R,) of the mask's pixels, spread evenly, through which rays are sampled."""
        y, x = np.nonzero(self.mask)
        chosen = np.unique(np.linspace(0, len(y) - 1, _RAYS_PER_VIEW).round().astype(int))
        return x[chosen], y[chosen]

    def depth(self, center: np.ndarray) -> float:
        """Depth of the center in the camera; positive."""
        return max(float((center - self.c2w[:3, 3]) @ self.c2w[:3, 2]), 1e-9)

    def sample(self, center: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`points` of sampled pixels, world normals (R, 3) of the pixels, and whether a point is in front."""
        x, y = self.sampled_pixels()
        points, in_front = self.points(x, y, center, reach)
        n = np.zeros((len(y), 3)) if self.normals is None else self.normals[y, x] @ self.c2w[:3, :3].T
        return points, n, in_front

    def points(self, x: np.ndarray, y: np.ndarray, center: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
        """Points (R, S, 3) on rays through pixels at depths within a distance of the center's, and which are in front."""
        rays = pixel_directions(self.K, np.stack([x, y], axis=-1))
        depths = self.depth(center) + reach * np.linspace(-1, 1, _SAMPLES_PER_RAY)
        points = self.c2w[:3, 3] + (rays @ self.c2w[:3, :3].T)[:, None] * depths[:, None]
        return points, np.broadcast_to(depths > 0, points.shape[:2])

    def pixels(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Nearest pixel columns and rows of points (..., 3), whether they are in front, and whether in the frame."""
        camera = (points - self.c2w[:3, 3]) @ self.c2w[:3, :3]
        in_front = camera[..., 2] > 1e-9
        camera[..., 2] = np.where(in_front, camera[..., 2], 1.0)
        height, width = self.mask.shape
        place = np.rint(np.clip(project(camera, self.K), -1, max(height, width)))
        x, y = place[..., 0].astype(int), place[..., 1].astype(int)
        in_frame = in_front & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        return x.clip(0, width - 1), y.clip(0, height - 1), in_front, in_frame

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Whether points (..., 3) project into the silhouette; beyond the frame, the nearest pixel counts."""
        x, y, in_front, _ = self.pixels(points)
        return in_front & (self.distance_px[y, x] <= _TOLERANCE_PX)

    def normals_at(self, points: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether the view sees points (R, 3) that have world normals n (R, 3), and its own world normals (R, 3) there."""
        assert self.normals is not None
        x, y, _, in_frame = self.pixels(points)
        to_camera = self.c2w[:3, 3] - points
        facing = (to_camera * n).sum(axis=1) > 0.5 * np.linalg.norm(to_camera, axis=1)
        own = self.normals[y, x] @ self.c2w[:3, :3].T
        return facing & in_frame & self.mask[y, x] & own.any(axis=1), own

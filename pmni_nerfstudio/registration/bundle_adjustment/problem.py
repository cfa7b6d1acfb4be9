# SPDX-License-Identifier: Apache-2.0
"""Normal bundle adjustment: all poses at once, so that the views agree on the normal of every surface point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pmni_nerfstudio.geometry.cameras import project
from pmni_nerfstudio.geometry.interpolation import lookup, lookup_volume, nearest
from pmni_nerfstudio.geometry.sim3 import cross_matrix
from pmni_nerfstudio.registration.bundle_adjustment.normal_lookup import (
    ALONG_X,
    ALONG_Y,
    BELIEF,
    CLEAR,
    WITHOUT_SLOPES,
    lookup_channels,
    unit_normals,
)
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import graze, silhouette_jacobian
from pmni_nerfstudio.registration.levenberg_marquardt import Linearization
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views


@dataclass(frozen=True)
class BundleOptions:
    """What counts, and how much."""

    points: int = 4000
    """Surface points."""
    huber: float = 0.15
    """Length of a normal's residual from where it counts linearly (radians, for small ones)."""
    depth_sigma_voxels: float = 0.5
    """How far a point may be off along its normal: it is free, held by this standard deviation."""
    silhouette_weight: float = 3.0
    """Of all contours against all normals. With much less, normals agree best where the cameras stand too far off, and
    the surface grows after them, round by round; with much more, the pixels' steps in the masks turn the poses."""
    silhouette_huber_px: float = 2.0
    """Distance of a contour's ray from the surface from where it counts linearly."""
    contour_points: int = 150
    """At most, a view."""
    bend: float = 0.05
    """Second difference of a normal map, radians a pixel squared, at which a pixel counts half."""


@dataclass(frozen=True, eq=False)
class _Sight:
    """Points that one view sees."""

    index: np.ndarray
    weight: np.ndarray


class BundleProblem:
    """Poses that make normals agree, for `solver.solve`; a state is a `Poses`.

    A surface point X, seen by the views i, has the world normals m_i = R_i^T n_i(project(R_i X + t_i)). The cost is
    the sum of robust |m_i - mu|^2 over points and views, where the point's true normal mu and its place along its own
    normal are unknowns of their own, eliminated point by point. Contours add that their rays graze the surface.
    Which view sees which point is settled once, at the poses given here.

    Args:
        views: normals, perhaps blurred.
        surface: as it is believed now.
        poses: the state that visibility is judged at.
        depths: (N, H, W), the surface's in each view.
        contours: outlines of the masks, sub-pixel, one array a view.
        options: weights.
        rng: draws the points.
        channels: `lookup_channels` of these views, where they are at hand.
        anchored: take the surface's normals for the true ones, so that each view is fitted to the surface by itself.
    """

    def __init__(
        self,
        views: Views,
        surface: Surface,
        poses: Poses,
        depths: Float[np.ndarray, "n h w"],
        contours: list[Float[np.ndarray, "p 2"]],
        options: BundleOptions,
        rng: np.random.Generator,
        channels: list[Tensor] | None = None,
        anchored: bool = False,
    ) -> None:
        self.anchored = anchored
        self.views, self.surface, self.options = views, surface, options
        self.contours = contours
        self.channels = lookup_channels(views, options.bend) if channels is None else channels
        self.points, face_normals = surface.samples(options.points, rng)
        gradient = lookup_volume(surface.lookups[1:], self.points).astype(np.float64)
        length = np.linalg.norm(gradient, axis=1, keepdims=True)
        self.normals = np.where(length > 0.1, gradient / np.maximum(length, 1e-6), face_normals)
        self.sights = self._visibility(poses, depths)
        self.pixel = float(np.median(poses.t[:, 2] / views.focal))  # a pixel's width at the object, world units
        self.residual_deg = np.full(len(views), np.nan)
        """Median angle between a view's normals and the points' means, degrees; of the last linearization."""

    def _visibility(self, poses: Poses, depths: np.ndarray) -> list[_Sight]:
        views, sights = self.views, []
        count = np.zeros(len(self.points), dtype=np.int64)
        for i in range(len(views)):
            camera = poses.to_camera(i, self.points)
            pixels = project(camera, views.K[i])
            row, column, inside = nearest(pixels, views.width, views.height)
            to_view = -camera / np.linalg.norm(camera, axis=1, keepdims=True)
            facing = (self.normals @ poses.R[i].T * to_view).sum(axis=1)
            seen = inside & (facing > 0.15) & views.masks[i, row, column]
            seen &= camera[:, 2] < depths[i, row, column] + 2.5 * self.surface.voxel
            seen &= np.isfinite(depths[i, row, column])
            index = np.flatnonzero(seen)
            looked_up = lookup(self.channels[i][WITHOUT_SLOPES], pixels[index]).astype(np.float64)
            clear = looked_up[:, CLEAR] > 0.99
            index, looked_up = index[clear], looked_up[clear]
            count[index] += 1
            normals, _ = unit_normals(looked_up)
            cosine = (normals * to_view[index]).sum(axis=1).clip(0.05, 1.0)
            sights.append(_Sight(index, cosine * looked_up[:, BELIEF]))
        shared = count >= (1 if self.anchored else 2)
        kept = []
        for sight in sights:
            keep = shared[sight.index]
            kept.append(_Sight(sight.index[keep], sight.weight[keep]))
        return kept

    def _observe(self, poses: Poses, view: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World normals m (p, 3) of a view's points, and their derivatives by its twist (p, 3, 6) and by the points'
        places along their normals (p, 3)."""
        index, R = self.sights[view].index, poses.R[view]
        camera = poses.to_camera(view, self.points[index])
        K = self.views.K[view]
        looked_up = lookup(self.channels[view], project(camera, K)).astype(np.float64)
        normals, length = unit_normals(looked_up)
        # d normal / d pixel (x, y)
        slopes = np.stack([looked_up[:, ALONG_X], looked_up[:, ALONG_Y]], axis=2) / length[..., None]
        slopes = slopes - normals[:, :, None] * (normals[:, None] @ slopes)
        x, y, z = camera.T
        zero = np.zeros_like(z)
        projection = np.stack(
            [
                np.stack([K[0, 0] / z, np.full_like(z, K[0, 1]) / z, -(K[0, 0] * x + K[0, 1] * y) / z**2], axis=1),
                np.stack([zero, K[1, 1] / z, -K[1, 1] * y / z**2], axis=1),
            ],
            axis=1,
        )
        by_camera = slopes @ projection  # d normal / d camera point
        turn = cross_matrix(normals) - by_camera @ cross_matrix(camera - poses.t[view])
        by_twist = R.T @ np.concatenate([turn, by_camera], axis=2)
        by_depth = np.einsum("ij,pjk,pk->pi", R.T, by_camera, self.normals[index] @ R.T)
        return normals @ R, by_twist, by_depth

    def linearize(self, state: Poses) -> Linearization:
        """Cost, gradient and Hessian with the points' own unknowns eliminated (Schur complement)."""
        o, count, size = self.options, len(self.points), 6 * len(self.views)
        observed = [self._observe(state, i) for i in range(len(self.views))]
        weights, means = self._robust_weights(observed)
        # A point's own Hessian, of its mean normal and its place along it: [[w_sum I, -pull], [-pull^T, stiffness]].
        weight_sum, pull = np.zeros(count), np.zeros((count, 3))
        stiffness = np.full(count, (o.huber / (o.depth_sigma_voxels * self.surface.voxel)) ** 2)
        own_gradient = np.zeros((count, 4))
        hessian, gradient = np.zeros((size, size)), np.zeros(size)
        cost = 0.0
        mixed = []
        for i, (sight, (normals, by_twist, by_depth)) in enumerate(zip(self.sights, observed)):
            k, w = sight.index, weights[i]
            residual = normals - means[k]
            length = np.linalg.norm(residual, axis=1)
            cost += (sight.weight * _huber(length, o.huber)).sum()
            block = slice(6 * i, 6 * i + 6)
            weighted = by_twist * w[:, None, None]
            hessian[block, block] += np.einsum("pia,pib->ab", weighted, by_twist)
            gradient[block] += np.einsum("pia,pi->a", weighted, residual)
            weight_sum[k] += w
            pull[k] += w[:, None] * by_depth
            stiffness[k] += w * (by_depth**2).sum(axis=1)
            own_gradient[k, :3] -= w[:, None] * residual
            own_gradient[k, 3] += w * (by_depth * residual).sum(axis=1)
            mixed.append(np.concatenate([-weighted, np.einsum("pi,pia->pa", by_depth, weighted)[:, None]], axis=1))
        if not self.anchored:
            half = _inverse_root(weight_sum, pull, stiffness)
            whitened_gradient = np.einsum("pij,pj->pi", half, own_gradient)
            cost -= 0.5 * (whitened_gradient**2).sum()
            whitened = np.zeros((count, 4, size), dtype=np.float32)
            for i, sight in enumerate(self.sights):
                whitened[sight.index, :, 6 * i : 6 * i + 6] = half[sight.index] @ mixed[i]
            flat = whitened.reshape(-1, size)
            hessian -= (flat.T @ flat).astype(np.float64)
            gradient -= flat.T @ whitened_gradient.reshape(-1).astype(np.float32)
        scale = 1 / (o.huber**2 * count)
        linear = Linearization(scale * hessian, scale * gradient, scale * float(cost))
        return self._with_silhouettes(linear, state) if o.silhouette_weight > 0 else linear

    def _robust_weights(self, observed: list) -> tuple[list[np.ndarray], np.ndarray]:
        """Huber's weights about the points' means, by reweighting the means once; and these means (p, 3)."""
        count, huber = len(self.points), self.options.huber
        weights, means = [sight.weight for sight in self.sights], self.normals
        for _ in range(2):
            total, weight_sum = np.zeros((count, 3)), np.zeros(count)
            for sight, w, (normals, _, _) in zip(self.sights, weights, observed):
                total[sight.index] += w[:, None] * normals
                weight_sum[sight.index] += w
            if not self.anchored:
                means = total / np.maximum(weight_sum, 1e-9)[:, None]
            weights = []
            for i, (sight, (normals, _, _)) in enumerate(zip(self.sights, observed)):
                length = np.linalg.norm(normals - means[sight.index], axis=1)
                weights.append(sight.weight * np.minimum(1.0, huber / np.maximum(length, 1e-9)))
                self.residual_deg[i] = np.rad2deg(np.median(length)) if len(length) else np.nan
        return weights, means

    def _with_silhouettes(self, linear: Linearization, poses: Poses) -> Linearization:
        o, count = self.options, len(self.views)
        hessian, gradient, cost = linear.hessian, linear.gradient, linear.cost
        huber = o.silhouette_huber_px * self.pixel
        for i, pixels in enumerate(self.contours):
            if not len(pixels):
                continue
            grazing = graze(self.surface, pixels, self.views.K[i], poses, i)
            jacobian = silhouette_jacobian(grazing, poses, i)
            scale = o.silhouette_weight / (huber**2 * 4 * len(pixels) * count)
            weight = scale * np.minimum(1.0, huber / np.maximum(np.abs(grazing.sdf), 1e-9))
            block = slice(6 * i, 6 * i + 6)
            hessian[block, block] += (jacobian * weight[:, None]).T @ jacobian
            gradient[block] += (jacobian * weight[:, None]).T @ grazing.sdf
            cost += scale * _huber(np.abs(grazing.sdf), huber).sum()
        return Linearization(hessian, gradient, float(cost))

    def retract(self, state: Poses, delta: Float[np.ndarray, " p"]) -> Poses:
        """Poses moved by their twists; no camera turns by more than a tenth of a radian or so at once."""
        twists = delta.reshape(-1, 6)
        largest = np.abs(twists[:, :3]).max()
        return state.retract(twists * min(1.0, 0.15 / max(largest, 1e-12)))


def _inverse_root(
    weight_sum: Float[np.ndarray, " p"], pull: Float[np.ndarray, "p 3"], stiffness: Float[np.ndarray, " p"]
) -> Float[np.ndarray, "p 4 4"]:
    """Inverses of the Cholesky factors of [[weight_sum I, -pull], [-pull^T, stiffness]]; zero where nothing is seen."""
    seen = weight_sum > 1e-9
    safe = np.where(seen, weight_sum, 1.0)
    last = 1 / np.sqrt(stiffness - (pull**2).sum(axis=1) / safe)
    out = np.zeros((len(safe), 4, 4))
    out[:, [0, 1, 2], [0, 1, 2]] = (1 / np.sqrt(safe))[:, None]
    out[:, 3, :3] = pull / safe[:, None] * last[:, None]
    out[:, 3, 3] = last
    return out * seen[:, None, None]


def _huber(length: np.ndarray, radius: float) -> np.ndarray:
    """Half the square up to the radius, linear beyond."""
    return np.where(length < radius, 0.5 * length**2, radius * (length - 0.5 * radius))

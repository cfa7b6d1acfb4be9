# SPDX-License-Identifier: Apache-2.0
"""The least-squares problem of normal bundle adjustment: poses for which the views agree on every surface normal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import huber
from torch import Tensor

from pmni_nerfstudio.geometry.cameras import project
from pmni_nerfstudio.geometry.interpolation import lookup, lookup_volume, nearest
from pmni_nerfstudio.geometry.reflectance_bias import tilted
from pmni_nerfstudio.geometry.sim3 import cross_matrix
from pmni_nerfstudio.registration.bundle_adjustment.normal_lookup import (
    ALONG_X,
    ALONG_Y,
    INTERIOR,
    WEIGHT,
    WITHOUT_DERIVATIVES,
    lookup_channels,
    unit_normals,
)
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import (
    rim_points,
    silhouette_by_intrinsics,
    silhouette_jacobian,
)
from pmni_nerfstudio.registration.levenberg_marquardt import Linearization
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views

INTRINSICS = 3
"""Number of unknowns of intrinsics that all views share: logarithm of the focal length, and shift of the principal point
along x and y, in mean focal lengths."""
_MAX_ROTATION = 0.15
"""Largest component of a camera's rotation vector in one step, in radians; larger steps are shortened."""


@dataclass(frozen=True)
class BundleOptions:
    """Weights and thresholds of normal bundle adjustment."""

    points: int = 4000
    """Number of surface points."""
    huber: float = 0.15
    """Huber threshold of the normal residuals (chord between unit normals; radians if small)."""
    depth_sigma_voxels: float = 0.5
    """Standard deviation of the surface points along their normals, in voxels; each point is free to move so far."""
    silhouette_weight: float = 3.0
    """Weight of all contours relative to all normals. With far less, the normals agree best at too large a distance, and
    the surface grows from round to round; with far more, the pixel staircase of the masks rotates the poses."""
    silhouette_huber_px: float = 2.0
    """Huber threshold of the distance between contour ray and surface, in pixels."""
    contour_points: int = 150
    """Largest number of contour points per view."""
    curvature: float = 0.05
    """Curvature-based down-weighting: second difference of a normal map, in radians per squared pixel, at which a pixel
    counts half."""


@dataclass(frozen=True, eq=False)
class _VisiblePoints:
    """Surface points that one view sees, and their weights."""

    index: Int[np.ndarray, " p"]
    weight: Float[np.ndarray, " p"]


@dataclass(frozen=True, eq=False)
class _Observation:
    """World normals that one view observes at its visible points, and their derivatives."""

    normals: Float[np.ndarray, "p 3"]
    jacobian: Float[np.ndarray, "3 p c"]
    """Derivatives by the view's twist, followed by those by the shared unknowns; components first, so that rotations and
    sums over points are single matrix products."""
    by_offset: Float[np.ndarray, "p 3"]
    """Derivatives by the points' offsets along their normals."""


class BundleProblem:
    """Normal bundle adjustment, for `levenberg_marquardt.solve`; the state is a `Poses`.

    A surface point X that view i sees has the observed world normal m_i = R_i^T n_i(project(R_i X + t_i)). The cost is
    the Huber loss of |m_i - mu_X|, summed over points and views, where the mean normal mu_X and the offset of X along its
    surface normal are unknowns, eliminated point by point (Schur complement). Silhouettes add the least signed distance
    along each contour ray, which should be zero. Visibility is determined once, at the poses given here.

    Args:
        views: normals (possibly blurred), masks and intrinsics.
        surface: the current surface.
        poses: poses at which visibility is determined.
        depths: depth of the surface in each view.
        contours: sub-pixel mask contours of the views.
        options: weights and thresholds.
        rng: random generator of the surface points.
        channels: `lookup_channels` of the views, if already computed.
        fixed_normals: keep mu_X at the surface's normals and X in place, so that each view is fitted to the surface
            independently.
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
        channels: list[Float[Tensor, "11 h w"]] | None = None,
        fixed_normals: bool = False,
    ) -> None:
        self.fixed_normals = fixed_normals
        self.views, self.surface, self.options = views, surface, options
        self.contours = contours
        self.channels = lookup_channels(views, options.curvature) if channels is None else channels
        self.points, face_normals = surface.samples(options.points, rng)
        gradient = lookup_volume(surface.lookups[1:], self.points).astype(np.float64)
        length = np.linalg.norm(gradient, axis=1, keepdims=True)
        self.normals = np.where(length > 0.1, gradient / np.maximum(length, 1e-6), face_normals)
        self.visible = self._visible_points(poses, depths)
        self.pixel = float(np.median(poses.t[:, 2] / views.focal))  # size of a pixel at the object, world units
        self.residual_deg = np.full(len(views), np.nan)
        """Median angle between each view's normals and the points' mean normals at the last linearization, degrees."""
        self.focal = float(views.focal.mean())
        """Unit of the principal point's shift, in pixels."""
        self.shared_gradients = np.zeros((len(views), 0))
        """Each view's part of the gradient by the shared unknowns, at the last linearization."""

    def _visible_points(self, poses: Poses, depths: Float[np.ndarray, "n h w"]) -> list[_VisiblePoints]:
        """Points that each view sees: where it has normals, facing, not occluded, and seen by another view as well."""
        views, candidates = self.views, []
        count = np.zeros(len(self.points), dtype=np.int64)
        for i in range(len(views)):
            camera = poses.to_camera(i, self.points)
            pixels = project(camera, views.K[i])
            row, column, inside = nearest(pixels, views.width, views.height)
            to_view = -camera / np.linalg.norm(camera, axis=1, keepdims=True)
            facing = (self.normals @ poses.R[i].T * to_view).sum(axis=1)
            visible = inside & (facing > 0.15) & views.valid[i, row, column]
            visible &= camera[:, 2] < depths[i, row, column] + 2.5 * self.surface.voxel
            visible &= np.isfinite(depths[i, row, column])
            index = np.flatnonzero(visible)
            values = lookup(self.channels[i][WITHOUT_DERIVATIVES], pixels[index]).astype(np.float64)
            interior = values[:, INTERIOR] > 0.99
            index, values = index[interior], values[interior]
            count[index] += 1
            normals, _ = unit_normals(values)
            cosine = (normals * to_view[index]).sum(axis=1).clip(0.05, 1.0)
            candidates.append(_VisiblePoints(index, cosine * values[:, WEIGHT]))
        shared = count >= (1 if self.fixed_normals else 2)
        kept = [shared[points.index] for points in candidates]
        return [_VisiblePoints(points.index[k], points.weight[k]) for points, k in zip(candidates, kept)]

    def _observe(
        self,
        poses: Poses,
        view: int,
        K: Float[np.ndarray, "3 3"],
        with_intrinsics: bool,
        bias: Float[np.ndarray, " b"] | None,
    ) -> _Observation:
        """Look up the normals that one view observes at its visible points."""
        index, R = self.visible[view].index, poses.R[view]
        camera = poses.to_camera(view, self.points[index])
        values = lookup(self.channels[view], project(camera, K)).astype(np.float64)
        normals, length = unit_normals(values)
        along_x, along_y = (
            (along - normals * (normals * along).sum(axis=1, keepdims=True)) / length
            for along in (values[:, ALONG_X], values[:, ALONG_Y])
        )
        x, y, z = camera.T
        u_by_camera = np.stack([K[0, 0] / z, K[0, 1] / z, -(K[0, 0] * x + K[0, 1] * y) / z**2], axis=1)
        v_by_camera = np.stack([np.zeros_like(z), K[1, 1] / z, -K[1, 1] * y / z**2], axis=1)
        by_camera = along_x.T[..., None] * u_by_camera + along_y.T[..., None] * v_by_camera
        # A row r times the cross matrix of v is r x v.
        by_rotation = np.moveaxis(cross_matrix(normals), 1, 0) - _cross(by_camera, camera - poses.t[view])
        by_offset = (by_camera * (self.normals[index] @ R.T)).sum(axis=-1).T
        columns = [by_rotation, by_camera]
        if with_intrinsics:
            u_by_intrinsics, v_by_intrinsics = self._pixels_by_intrinsics(camera, K)
            columns.append(along_x.T[..., None] * u_by_intrinsics + along_y.T[..., None] * v_by_intrinsics)
        if bias is not None:
            # The curve is smooth: the tilt's own change along the surface is negligible in the other derivatives.
            to_view = -camera / np.linalg.norm(camera, axis=1, keepdims=True)
            normals, by_bias = tilted(normals, to_view, bias)
            columns.append(np.moveaxis(by_bias, 1, 0))
        jacobian = np.concatenate(columns, axis=2)
        rotated = (R.T @ jacobian.reshape(3, -1)).reshape(jacobian.shape)
        return _Observation(normals @ R, rotated, by_offset @ R)

    def _pixels_by_intrinsics(
        self, camera: Float[np.ndarray, "p 3"], K: Float[np.ndarray, "3 3"]
    ) -> Float[np.ndarray, "2 p i"]:
        """Derivatives of the pixels of points in camera coordinates by `INTRINSICS`."""
        x, y, z = camera.T
        out = np.zeros((2, len(z), INTRINSICS))
        out[0, :, 0], out[1, :, 0] = (K[0, 0] * x + K[0, 1] * y) / z, K[1, 1] * y / z
        out[0, :, 1] = out[1, :, 2] = self.focal
        return out

    def linearize(self, state: Poses) -> Linearization:
        """Cost, gradient and Hessian by the poses."""
        return self.linearize_shared(state, self.views.K)

    def linearize_shared(
        self,
        poses: Poses,
        K: Float[np.ndarray, "n 3 3"],
        with_intrinsics: bool = False,
        bias: Float[np.ndarray, " b"] | None = None,
    ) -> Linearization:
        """Cost, gradient and Hessian with the points' own unknowns eliminated (Schur complement).

        Args:
            poses: poses of all views.
            K: intrinsics of all views.
            with_intrinsics: the poses are followed by the `INTRINSICS` that all views share.
            bias: coefficients of a `ReflectanceBias` to remove from the views' normals; they are the last unknowns.
        """
        o, count, shared = self.options, len(self.points), 6 * len(self.views)
        size = shared + (INTRINSICS if with_intrinsics else 0) + (0 if bias is None else len(bias))
        observed = [self._observe(poses, i, K[i], with_intrinsics, bias) for i in range(len(self.views))]
        weights, means = self._robust_weights(observed)
        by_view = np.zeros((len(self.views), size - shared))
        # Hessian of a point's own unknowns, mean normal and offset: [[weight_sum I, -pull], [-pull^T, stiffness]].
        weight_sum, pull = np.zeros(count), np.zeros((count, 3))
        stiffness = np.full(count, (o.huber / (o.depth_sigma_voxels * self.surface.voxel)) ** 2)
        own_gradient = np.zeros((count, 4))
        hessian, gradient = np.zeros((size, size)), np.zeros(size)
        cost = 0.0
        weighted_jacobians = []
        for i, (visible, view) in enumerate(zip(self.visible, observed)):
            k, w = visible.index, weights[i]
            residual = view.normals - means[k]
            cost += (visible.weight * huber(o.huber, np.linalg.norm(residual, axis=1))).sum()
            block = np.r_[6 * i : 6 * i + 6, shared:size]
            weighted = view.jacobian * w[:, None]
            rows = weighted.reshape(-1, len(block))
            hessian[np.ix_(block, block)] += rows.T @ view.jacobian.reshape(-1, len(block))
            view_gradient = rows.T @ residual.T.ravel()
            gradient[block] += view_gradient
            by_view[i] = view_gradient[6:]
            weight_sum[k] += w
            pull[k] += w[:, None] * view.by_offset
            stiffness[k] += w * (view.by_offset**2).sum(axis=1)
            own_gradient[k, :3] -= w[:, None] * residual
            own_gradient[k, 3] += w * (view.by_offset * residual).sum(axis=1)
            weighted_jacobians.append(weighted)
        if not self.fixed_normals:
            # Inverse Cholesky factor of a point's own Hessian: [[root I, 0], [last * mean_pull, last]].
            seen = weight_sum > 1e-9
            safe = np.where(seen, weight_sum, 1.0)
            root, mean_pull = seen / np.sqrt(safe), pull / safe[:, None]
            last = seen / np.sqrt(stiffness - (pull * mean_pull).sum(axis=1))
            whitened_gradient = np.empty((count, 4), dtype=np.float32)
            whitened_gradient[:, :3] = root[:, None] * own_gradient[:, :3]
            whitened_gradient[:, 3] = last * ((mean_pull * own_gradient[:, :3]).sum(axis=1) + own_gradient[:, 3])
            cost -= 0.5 * (whitened_gradient.astype(np.float64) ** 2).sum()
            whitened = np.zeros((count, 4, size), dtype=np.float32)
            for i, (visible, view, weighted) in enumerate(zip(self.visible, observed, weighted_jacobians)):
                k = visible.index
                columns = np.empty((len(k), 4, weighted.shape[2]), dtype=np.float32)
                columns[:, :3] = -np.moveaxis(weighted * root[k, None], 0, 1)
                pulled = (view.by_offset - mean_pull[k]).T[..., None]
                columns[:, 3] = last[k, None] * (pulled * weighted).sum(axis=0)
                whitened[k, :, 6 * i : 6 * i + 6] = columns[..., :6]
                if size > shared:
                    whitened[k, :, shared:] += columns[..., 6:]
                    by_view[i] -= np.einsum("pia,pi->a", columns[..., 6:], whitened_gradient[k])
            flat = torch.from_numpy(whitened.reshape(-1, size))  # torch's product takes a third of NumPy's time
            hessian -= (flat.T @ flat).numpy()
            gradient -= (flat.T @ torch.from_numpy(whitened_gradient.ravel())).numpy()
        scale = 1 / (o.huber**2 * count)
        self.shared_gradients = scale * by_view
        linear = Linearization(scale * hessian, scale * gradient, scale * float(cost))
        return self._with_silhouettes(linear, poses, K, with_intrinsics) if o.silhouette_weight > 0 else linear

    def _robust_weights(
        self, observed: list[_Observation]
    ) -> tuple[list[Float[np.ndarray, " p"]], Float[np.ndarray, "p 3"]]:
        """Weights with the Huber factor of each residual, and the points' mean normals, reweighted once."""
        count, threshold = len(self.points), self.options.huber
        weights, means = [visible.weight for visible in self.visible], self.normals
        for _ in range(2):
            total, weight_sum = np.zeros((count, 3)), np.zeros(count)
            for visible, w, view in zip(self.visible, weights, observed):
                total[visible.index] += w[:, None] * view.normals
                weight_sum[visible.index] += w
            if not self.fixed_normals:
                means = total / np.maximum(weight_sum, 1e-9)[:, None]
            weights = []
            for i, (visible, view) in enumerate(zip(self.visible, observed)):
                length = np.linalg.norm(view.normals - means[visible.index], axis=1)
                weights.append(visible.weight * np.minimum(1.0, threshold / np.maximum(length, 1e-9)))
                self.residual_deg[i] = np.rad2deg(np.median(length)) if len(length) else np.nan
        return weights, means

    def _with_silhouettes(
        self, linear: Linearization, poses: Poses, K: Float[np.ndarray, "n 3 3"], with_intrinsics: bool
    ) -> Linearization:
        """Add the silhouette residuals to a linearization."""
        o, count = self.options, len(self.views)
        hessian, gradient, cost = linear.hessian, linear.gradient, linear.cost
        shared = 6 * count
        intrinsics = np.arange(shared, shared + INTRINSICS) if with_intrinsics else np.arange(0)
        threshold = o.silhouette_huber_px * self.pixel
        for i, pixels in enumerate(self.contours):
            if not len(pixels):
                continue
            rim = rim_points(self.surface, pixels, K[i], poses, i)
            jacobian = silhouette_jacobian(rim, poses, i)
            if with_intrinsics:
                jacobian = np.concatenate([jacobian, silhouette_by_intrinsics(rim, poses, i, K[i], self.focal)], axis=1)
            scale = o.silhouette_weight / (threshold**2 * 4 * len(pixels) * count)
            weight = scale * np.minimum(1.0, threshold / np.maximum(np.abs(rim.sdf), 1e-9))
            block = np.r_[6 * i : 6 * i + 6, intrinsics]
            hessian[np.ix_(block, block)] += (jacobian * weight[:, None]).T @ jacobian
            view_gradient = (jacobian * weight[:, None]).T @ rim.sdf
            gradient[block] += view_gradient
            self.shared_gradients[i, : len(intrinsics)] += view_gradient[6:]
            cost += scale * huber(threshold, np.abs(rim.sdf)).sum()
        return Linearization(hessian, gradient, float(cost))

    def retract(self, state: Poses, delta: Float[np.ndarray, " p"]) -> Poses:
        """Poses moved by their twists; if a rotation is too large, all twists are shortened alike."""
        twists = delta.reshape(-1, 6)
        largest = np.abs(twists[:, :3]).max()
        return state.retract(twists * min(1.0, _MAX_ROTATION / max(largest, 1e-12)))


def _cross(rows: Float[np.ndarray, "a p 3"], v: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "a p 3"]:
    """Cross products rows x v; numpy.cross takes several times as long."""
    x, y, z = v.T
    a, b, c = rows[..., 0], rows[..., 1], rows[..., 2]
    return np.stack([b * z - c * y, c * x - a * z, a * y - b * x], axis=-1)

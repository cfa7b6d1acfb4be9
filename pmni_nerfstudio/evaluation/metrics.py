# SPDX-License-Identifier: Apache-2.0
"""Error metrics of surfaces, camera poses and normals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh

from pmni_nerfstudio.geometry.normals import angular_error_deg
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.sim3 import angles_deg

FSCORE_PCT = 1.0
"""Threshold of the scale-free F-score, in % of the object's diameter; usable whatever the units of the data."""


@dataclass(frozen=True)
class SurfaceScore:
    """Distances between a mesh and the ground truth where the cameras see them, in the meshes' units unless noted."""

    chamfer: float
    """Mean of accuracy and completeness."""
    chamfer_pct: float
    """Chamfer distance in % of the ground-truth object's diameter."""
    accuracy: float
    """Mean distance from visible points of the result to the ground-truth surface."""
    completeness: float
    """Mean distance from visible points of the ground truth to the result."""
    threshold: float
    """Distance threshold of the F-score."""
    fscore: float
    """Harmonic mean of precision and recall: the shares of visible points of the result and of the ground truth that lie
    within the threshold of the other surface."""
    fscore_1pct: float
    """F-score at a threshold of 1% of the object's diameter."""


@dataclass(frozen=True)
class PoseScore:
    """Errors of camera poses; positions in the world's units unless noted."""

    rot_deg: float
    """Mean rotation error, degrees."""
    rot_deg_max: float
    """Largest rotation error, degrees."""
    views_under_1deg: float
    """Share of views with a rotation error below 1 degree."""
    position: float
    """Mean distance between camera centers."""
    position_pct: float
    """Mean distance between camera centers in % of the object's radius."""
    ate: float
    """Absolute trajectory error: root mean square distance between camera centers."""
    rpe_rot_deg: float
    """Rotational relative pose error between consecutive views: root mean square, degrees."""
    rpe_position: float
    """Translational relative pose error between consecutive views: root mean square."""
    rot_deg_views: tuple[float, ...]
    """Rotation error of each view, degrees."""
    position_views: tuple[float, ...]
    """Distance between camera centers of each view."""


def object_radius(mesh: trimesh.Trimesh) -> float:
    """Radius of the smallest sphere about the center of the mesh's bounding box that contains the mesh."""
    return float(np.linalg.norm(mesh.vertices - mesh.bounds.mean(0), axis=1).max())


def score_surface(
    mesh: trimesh.Trimesh,
    truth: trimesh.Trimesh,
    K: np.ndarray,
    c2w: np.ndarray,
    width: int,
    height: int,
    threshold: float,
    masks: np.ndarray | None = None,
) -> SurfaceScore | None:
    """Chamfer distance and F-score over the visible surface, as in the evaluations of DiLiGenT-MV.

    Sample points are the first hits of pixel rays with each surface. With masks only the object's pixels count, as in
    the literature; without, floaters beside the object are penalized too. Distances are measured from points to the
    other surface rather than to its samples, so that sampling adds no error.

    Args:
        mesh: Mesh of the result, in the ground truth's world.
        truth: Ground-truth mesh.
        K: (3, 3) or (N, 3, 3) intrinsics, pixel centers at integers.
        c2w: (N, 4, 4) ground-truth poses, OpenCV axes, in the meshes' world.
        width: Image width in pixels.
        height: Image height in pixels.
        threshold: Distance threshold of the F-score, in the meshes' units.
        masks: (N, height, width) bool, pixels to use; None: all.

    Returns:
        The errors, or None if no camera sees the result.

    Raises:
        ValueError: No camera sees the ground truth.

    References:
        Knapitsch et al., "Tanks and Temples", ACM TOG 2017 (F-score).
    """
    rays, true_rays = RayCaster(mesh), RayCaster(truth)
    seen = rays.visible_points(K, c2w, width, height, masks)
    true_seen = true_rays.visible_points(K, c2w, width, height, masks)
    if len(true_seen) == 0:
        raise ValueError("no camera sees the ground-truth surface")
    if len(seen) == 0:
        return None
    to_truth, to_mesh = true_rays.distance(seen), rays.distance(true_seen)
    diameter = 2 * object_radius(truth)

    def fscore(within: float) -> float:
        precision, recall = float((to_truth < within).mean()), float((to_mesh < within).mean())
        return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0

    accuracy, completeness = float(to_truth.mean(dtype=np.float64)), float(to_mesh.mean(dtype=np.float64))
    chamfer = (accuracy + completeness) / 2
    return SurfaceScore(
        chamfer=chamfer,
        chamfer_pct=100 * chamfer / diameter,
        accuracy=accuracy,
        completeness=completeness,
        threshold=threshold,
        fscore=fscore(threshold),
        fscore_1pct=fscore(FSCORE_PCT / 100 * diameter),
    )


def score_poses(c2w: np.ndarray, c2w_true: np.ndarray, radius: float) -> PoseScore:
    """Errors of aligned camera poses against the ground truth, both with the same axes and world.

    ATE and RPE follow Sturm et al., "A Benchmark for the Evaluation of RGB-D SLAM Systems", IROS 2012, except for the
    alignment: one similarity for surface and cameras (see `score_geometry`).

    Args:
        c2w: (N, 4, 4) aligned poses of the result, in capture order.
        c2w_true: (N, 4, 4) ground-truth poses.
        radius: Radius of the object in the same units.
    """
    angle = angles_deg(c2w[:, :3, :3], c2w_true[:, :3, :3])
    shift = np.linalg.norm(c2w[:, :3, 3] - c2w_true[:, :3, 3], axis=-1)
    step, true_step = (np.linalg.inv(poses[:-1]) @ poses[1:] for poses in (c2w, c2w_true))
    between = np.linalg.inv(true_step) @ step
    return PoseScore(
        rot_deg=float(angle.mean()),
        rot_deg_max=float(angle.max()),
        views_under_1deg=float((angle < 1).mean()),
        position=float(shift.mean()),
        position_pct=float(100 * shift.mean() / radius),
        ate=_root_mean_square(shift),
        rpe_rot_deg=_root_mean_square(angles_deg(step[:, :3, :3], true_step[:, :3, :3])),
        rpe_position=_root_mean_square(np.linalg.norm(between[:, :3, 3], axis=-1)),
        rot_deg_views=tuple(angle.tolist()),
        position_views=tuple(shift.tolist()),
    )


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean())) if len(values) else 0.0


@dataclass(frozen=True)
class NormalScore:
    """Error of the rendered normals of one view."""

    mae_deg: float
    """Mean angular error in degrees over pixels with reference normals that show the surface; 180 if there are none."""
    median_deg: float
    """Median angular error in degrees over the same pixels."""
    mask_iou: float
    """Intersection over union of the mask and the rendered silhouette."""
    pixels: int
    """Number of pixels whose normals were compared."""


def score_normals(
    rendered: np.ndarray, reference: np.ndarray, mask: np.ndarray, unknown: np.ndarray | None = None
) -> NormalScore:
    """Compare the rendered normals of one view with reference normals in the same frame.

    Args:
        rendered: (H, W, 3) normals, zero where no surface is visible.
        reference: (H, W, 3) normals, zero where there is none.
        mask: (H, W) bool, pixels of the object.
        unknown: (H, W) bool, pixels off the mask where something else stands in front, which do not count.
    """
    seen = (rendered != 0).any(axis=-1)
    if unknown is not None:
        seen &= ~unknown
    both = seen & mask
    compared = both & (reference != 0).any(axis=-1)
    errors = angular_error_deg(rendered[compared], reference[compared]) if compared.any() else np.array([180.0])
    return NormalScore(
        mae_deg=float(errors.mean()),
        median_deg=float(np.median(errors)),
        mask_iou=float(both.sum() / max((seen | mask).sum(), 1)),
        pixels=int(compared.sum()),
    )

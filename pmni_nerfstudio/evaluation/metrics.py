# SPDX-License-Identifier: Apache-2.0
"""The field's measures of a surface, of poses and of normals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.normals import angular_error_deg
from pmni_nerfstudio.geometry.ray_casting import RayCaster

FSCORE_PCT = 1.0
"""Threshold of the second F-score in % of the true object's diameter, for data whose units are nobody's millimetres."""


@dataclass(frozen=True)
class SurfaceScore:
    """How far two surfaces are apart where the cameras see them. Distances in the meshes' units unless said."""

    chamfer: float
    """Mean of accuracy and completeness."""
    chamfer_pct: float
    """The same in % of the true object's diameter."""
    accuracy: float
    """Mean distance of the result's visible points to the true surface."""
    completeness: float
    """Mean distance of the truth's visible points to the result."""
    threshold: float
    """The F-score's."""
    fscore: float
    """Harmonic mean of precision and recall: shares of either surface's visible points within the threshold."""
    fscore_1pct: float
    """The same at 1% of the true object's diameter."""


@dataclass(frozen=True)
class PoseScore:
    """How far poses are from the true ones. Positions in the world's units unless said."""

    rot_deg: float
    """Mean angle between orientations."""
    rot_deg_max: float
    """The worst view's."""
    views_under_1deg: float
    """Share of the views with an angle under 1 degree."""
    position: float
    """Mean distance between centres."""
    position_pct: float
    """The same in % of the true object's radius."""
    ate: float
    """Absolute trajectory error: root mean square of the distances between centres."""
    rpe_rot_deg: float
    """Relative pose error between each view and the next: root mean square of the angles."""
    rpe_position: float
    """And of the shifts."""
    rot_deg_views: tuple[float, ...]
    """Each view's angle."""
    position_views: tuple[float, ...]
    """Each view's distance between centres."""


def object_radius(truth: trimesh.Trimesh) -> float:
    """Radius of the sphere about the middle of the mesh's bounding box that holds the mesh; the diameter is twice that."""
    return float(np.linalg.norm(truth.vertices - truth.bounds.mean(0), axis=1).max())


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
    """Chamfer distance and F-score over what the true cameras see, as DiLiGenT-MV's evaluations have it.

    Points are where the rays of the views' pixels first meet each surface: of the masks' pixels, as papers have it, or
    of all, so that a piece which floats beside the object costs too. Distances go from points to the other *surface*,
    whole, and not to samples of it: there is no floor from sampling. F-score: Knapitsch et al., "Tanks and Temples",
    2017.

    Args:
        mesh: the result, in the true world.
        truth: the true surface.
        K: (3, 3) or (N, 3, 3), integer pixel centres.
        c2w: (N, 4, 4) true poses, OpenCV axes, in the meshes' world.
        width, height: of every view.
        threshold: of the F-score, in the meshes' units.
        masks: (N, height, width) bool, the pixels that count; None: all.

    Returns:
        The scores, or None if no camera sees any of the result.

    Raises:
        ValueError: no camera sees the truth.
    """
    rays, true_rays = RayCaster(mesh), RayCaster(truth)
    seen = rays.visible_points(K, c2w, width, height, masks)
    true_seen = true_rays.visible_points(K, c2w, width, height, masks)
    if len(true_seen) == 0:
        raise ValueError("no camera sees the true surface")
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
    """Errors of poses (N, 4, 4) against true ones (N, 4, 4), both camera-to-world in the true world, same axes.

    ATE and RPE: Sturm et al., "A Benchmark for the Evaluation of RGB-D SLAM Systems", IROS 2012. The alignment is not
    theirs but one similarity for surface and cameras (see `score`).

    Args:
        c2w: the result's, already aligned, in the capture's order.
        c2w_true: the truth's.
        radius: of the true object, in the same units.
    """
    angle = _angles_deg(c2w[:, :3, :3], c2w_true[:, :3, :3])
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
        rpe_rot_deg=_root_mean_square(_angles_deg(step[:, :3, :3], true_step[:, :3, :3])),
        rpe_position=_root_mean_square(np.linalg.norm(between[:, :3, 3], axis=-1)),
        rot_deg_views=tuple(angle.tolist()),
        position_views=tuple(shift.tolist()),
    )


def _angles_deg(R: np.ndarray, R_true: np.ndarray) -> np.ndarray:
    return np.degrees(Rotation.from_matrix(np.swapaxes(R, 1, 2) @ R_true).magnitude())


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean())) if len(values) else 0.0


@dataclass(frozen=True)
class NormalScore:
    """Rendered normals of one view against known ones."""

    mae_deg: float
    """Mean angular error over the mask's pixels that show the surface, degrees; 180 where none does."""
    median_deg: float
    """The median of the same."""
    mask_iou: float
    """Overlap of the mask and the rendered silhouette, intersection over union."""
    pixels: int
    """That the mean is taken over."""


def score_normals(rendered: np.ndarray, known: np.ndarray, mask: np.ndarray) -> NormalScore:
    """Compare normals (H, W, 3) of one view with known ones on a mask (H, W), both in one frame.

    Args:
        rendered: zero where no surface is seen.
        known: unit on the mask.
        mask: of the object.
    """
    seen = (rendered != 0).any(axis=-1)
    both = seen & mask
    errors = angular_error_deg(rendered[both], known[both]) if both.any() else np.array([180.0])
    return NormalScore(
        mae_deg=float(errors.mean()),
        median_deg=float(np.median(errors)),
        mask_iou=float(both.sum() / max((seen | mask).sum(), 1)),
        pixels=int(both.sum()),
    )

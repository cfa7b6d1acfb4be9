# SPDX-License-Identifier: Apache-2.0
"""The field's measures of a surface, of poses and of normals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.evaluation.raycast import MeshRays


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
    fscore: float
    """Harmonic mean of precision and recall: shares of either surface's visible points within the threshold."""
    threshold_pct: float
    """The F-score's threshold in % of the diameter."""


@dataclass(frozen=True)
class PoseScore:
    """How far poses are from the true ones."""

    rot_deg: float
    """Mean angle between orientations."""
    rot_deg_max: float
    """The worst view's."""
    trans_pct: float
    """Mean distance between centres in % of the true object's radius."""
    views_under_1deg: float
    """Share of the views with an angle under 1 degree."""


@dataclass(frozen=True)
class MeshFacts:
    """What a mesh is by itself."""

    faces: int
    """How many triangles."""
    components: int
    """Pieces not connected by edges."""
    watertight: bool
    """Whether every edge is shared by two faces."""


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
    threshold_pct: float = 1.0,
) -> SurfaceScore | None:
    """Chamfer distance and F-score over what the true cameras see, as DiLiGenT-MV's evaluations have it.

    Points are where the rays of the views' pixels first meet each surface; every pixel whose ray meets one counts, so
    that a piece which floats beside the object costs. Distances go from points to the other *surface*, whole, and not
    to samples of it: there is no floor from sampling. F-score: Knapitsch et al., "Tanks and Temples", 2017.

    Args:
        mesh: the result, in the true world.
        truth: the true surface.
        K: (3, 3), integer pixel centres.
        c2w: (N, 4, 4) true poses, OpenCV axes, in the meshes' world.
        width, height: of every view.
        threshold_pct: of the F-score, in % of the true object's diameter.

    Returns:
        The scores, or None if no camera sees any of the result.

    Raises:
        ValueError: no camera sees the truth.
    """
    rays, true_rays = MeshRays(mesh), MeshRays(truth)
    seen = rays.visible_points(K, c2w, width, height)
    true_seen = true_rays.visible_points(K, c2w, width, height)
    if len(true_seen) == 0:
        raise ValueError("no camera sees the true surface")
    if len(seen) == 0:
        return None
    to_truth, to_mesh = true_rays.distance(seen), rays.distance(true_seen)
    diameter = 2 * object_radius(truth)
    threshold = threshold_pct / 100 * diameter
    precision, recall = float((to_truth < threshold).mean()), float((to_mesh < threshold).mean())
    accuracy, completeness = float(to_truth.mean(dtype=np.float64)), float(to_mesh.mean(dtype=np.float64))
    chamfer = (accuracy + completeness) / 2
    return SurfaceScore(
        chamfer=chamfer,
        chamfer_pct=100 * chamfer / diameter,
        accuracy=accuracy,
        completeness=completeness,
        fscore=2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0,
        threshold_pct=threshold_pct,
    )


def score_poses(c2w: np.ndarray, c2w_true: np.ndarray, radius: float) -> PoseScore:
    """Errors of poses (N, 4, 4) against true ones (N, 4, 4), both camera-to-world in the true world, same axes.

    Args:
        c2w: the result's, already aligned.
        c2w_true: the truth's.
        radius: of the true object, in the same units.
    """
    turn = Rotation.from_matrix(np.swapaxes(c2w[:, :3, :3], 1, 2) @ c2w_true[:, :3, :3])
    angle = np.degrees(turn.magnitude())
    shift = np.linalg.norm(c2w[:, :3, 3] - c2w_true[:, :3, 3], axis=-1)
    return PoseScore(
        rot_deg=float(angle.mean()),
        rot_deg_max=float(angle.max()),
        trans_pct=float(100 * shift.mean() / radius),
        views_under_1deg=float((angle < 1).mean()),
    )


def transform_poses(similarity: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """Poses (N, 4, 4) in the world that a similarity (4, 4) leads to: centres move, orientations only turn."""
    out = similarity @ c2w
    out[:, :3, :3] /= np.cbrt(np.linalg.det(similarity[:3, :3]))
    return out


def angular_error_deg(normals: np.ndarray, true_normals: np.ndarray) -> np.ndarray:
    """Angle in degrees (...) between vectors (..., 3), of any length; where one is zero, no surface, 90."""
    a, b = normals.astype(np.float64), true_normals.astype(np.float64)
    sine, cosine = np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)
    # unlike the arc cosine, exact for small angles
    angle = np.degrees(np.arctan2(sine, cosine))
    return np.where((a == 0).all(-1) | (b == 0).all(-1), 90.0, angle)


def normal_mae_deg(normals: np.ndarray, true_normals: np.ndarray, mask: np.ndarray) -> float:
    """Mean angular error in degrees of normals (..., 3) over a mask (...), both normals in one frame.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("normal_mae_deg: the mask is empty")
    return float(angular_error_deg(normals[mask], true_normals[mask]).mean())


def mesh_facts(mesh: trimesh.Trimesh) -> MeshFacts:
    """Counts of a mesh, whose equal vertices are taken for one (formats without indices repeat them)."""
    mesh = mesh.copy()
    mesh.merge_vertices()
    return MeshFacts(faces=len(mesh.faces), components=int(mesh.body_count), watertight=bool(mesh.is_watertight))

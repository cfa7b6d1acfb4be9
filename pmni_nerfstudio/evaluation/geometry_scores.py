# SPDX-License-Identifier: Apache-2.0
"""Surface and pose errors of a result against the ground truth, after an optional similarity alignment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import trimesh

from pmni_nerfstudio.evaluation.alignment import fit_similarity, similarity_from_cameras
from pmni_nerfstudio.evaluation.ground_truth import GroundTruth
from pmni_nerfstudio.evaluation.metrics import PoseScore, SurfaceScore, object_radius, score_poses, score_surface
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.transforms import scale_of, transform_poses

Rays = Literal["masked", "all"]


@dataclass(frozen=True)
class GeometryScores:
    """Surface and pose errors; distances in units of the data's world."""

    surface: SurfaceScore
    poses: PoseScore | None
    """Pose errors; None if the result has no poses."""
    similarity: np.ndarray
    """(4, 4) alignment from the result to the ground truth, in the data's world; the identity without alignment."""

    @property
    def scale(self) -> float:
        """Scale factor of the alignment."""
        return scale_of(self.similarity)


def score_geometry(
    mesh: trimesh.Trimesh,
    c2w: np.ndarray | None,
    truth: GroundTruth,
    align: bool,
    threshold: float = 0.5,
    rays: Rays = "masked",
    views: np.ndarray | None = None,
    fit_points: int = 20_000,
) -> GeometryScores | None:
    """Compute surface and pose errors of a result in the data's world.

    Args:
        mesh: Mesh of the result, in the data's world.
        c2w: (n, 4, 4) poses of the result in the same world, OpenCV axes, or None. With poses, the rotation of the
            alignment is the mean of the relative orientations and only scale and translation are fitted to the
            surface; without, all seven parameters are.
        truth: Ground truth.
        align: Whether to align the result to the ground truth by a similarity first.
        threshold: Distance threshold of the F-score, in units of the data's world.
        rays: Pixels whose rays sample the surfaces: "masked" for those of the masks, "all" for all pixels.
        views: (n,) indices of the poses' views in the ground truth; by default all.
        fit_points: Number of surface samples used by the alignment.

    Returns:
        The errors, or None if no ground-truth camera sees the aligned result.

    Raises:
        PmniError: The alignment is undetermined because all poses share one camera center.
    """
    unit_from_world = np.linalg.inv(truth.world_from_unit)
    mesh = mesh.copy().apply_transform(unit_from_world)
    true_c2w = truth.c2w if views is None else truth.c2w[views]
    c2w = None if c2w is None else transform_poses(unit_from_world, c2w)
    similarity = np.eye(4)
    if align:
        points = np.asarray(mesh.sample(fit_points, seed=0))
        start = similarity if c2w is None else similarity_from_cameras(c2w, true_c2w)
        true_rays = RayCaster(truth.mesh)
        true_seen = true_rays.visible_points(truth.K, truth.c2w, truth.width, truth.height)
        similarity = fit_similarity(points, true_rays, true_seen, start, rotate=c2w is None)
        mesh.apply_transform(similarity)
    masks = truth.masks if rays == "masked" else None
    unit = truth.scale
    surface = score_surface(
        mesh, truth.mesh, truth.K, truth.c2w, truth.width, truth.height, threshold / unit, masks=masks
    )
    if surface is None:
        return None
    poses = None
    if c2w is not None:
        aligned = transform_poses(similarity, c2w)
        poses = score_poses(
            *(transform_poses(truth.world_from_unit, p) for p in (aligned, true_c2w)),
            radius=unit * object_radius(truth.mesh),
        )
    return GeometryScores(
        surface=replace(
            surface,
            chamfer=unit * surface.chamfer,
            accuracy=unit * surface.accuracy,
            completeness=unit * surface.completeness,
            threshold=threshold,
        ),
        poses=poses,
        similarity=truth.world_from_unit @ similarity @ unit_from_world,
    )

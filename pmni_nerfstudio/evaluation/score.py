# SPDX-License-Identifier: Apache-2.0
"""Surface and poses of a result against the truth: align, then measure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import trimesh

from pmni_nerfstudio.evaluation.alignment import fit_similarity, similarity_from_cameras
from pmni_nerfstudio.evaluation.ground_truth import Truth
from pmni_nerfstudio.evaluation.metrics import PoseScore, SurfaceScore, object_radius, score_poses, score_surface
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.transforms import scale_of, transform_poses

Rays = Literal["masked", "all"]


@dataclass(frozen=True)
class Scores:
    """What is measured against the truth; distances in units of the data's world."""

    surface: SurfaceScore
    poses: PoseScore | None
    """None where no poses were given."""
    similarity: np.ndarray
    """(4, 4), took the result to the truth, in the data's world; the identity without alignment."""

    @property
    def scale(self) -> float:
        """Of the similarity."""
        return scale_of(self.similarity)


def score(
    mesh: trimesh.Trimesh,
    c2w: np.ndarray | None,
    truth: Truth,
    align: bool,
    threshold: float = 0.5,
    rays: Rays = "masked",
    views: np.ndarray | None = None,
    fit_points: int = 20_000,
) -> Scores | None:
    """Score a result in the data's world.

    Args:
        mesh: the result.
        c2w: (n, 4, 4) its poses, OpenCV axes, or None. With them the rotation of the alignment is the mean of what
            the orientations say, and only scale and shift are fitted to the surface; without, all seven parameters are.
        truth: what it should be.
        align: whether to take the result to the true world by a similarity first.
        threshold: of the F-score, in units of the data's world.
        rays: whose first hits are compared: those of the masks' pixels, or of all.
        views: (n,) which of the truth's views the poses are of; all of them by default.
        fit_points: on the result, that the alignment goes by.

    Returns:
        The scores, or None if no true camera sees any of the aligned result.
    """
    unit_from_world = truth.unit_from_world
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
        moved = transform_poses(similarity, c2w)
        poses = score_poses(
            *(transform_poses(truth.world_from_unit, p) for p in (moved, true_c2w)),
            radius=unit * object_radius(truth.mesh),
        )
    return Scores(
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

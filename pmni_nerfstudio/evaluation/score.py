# SPDX-License-Identifier: Apache-2.0
"""All scores of a result at once: align, then measure surface and poses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import trimesh

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.alignment import fit_similarity, similarity_from_cameras
from pmni_nerfstudio.evaluation.metrics import (
    MeshFacts,
    PoseScore,
    SurfaceScore,
    mesh_facts,
    object_radius,
    score_poses,
    score_surface,
    transform_poses,
)
from pmni_nerfstudio.evaluation.raycast import MeshRays
from pmni_nerfstudio.evaluation.truth import Truth, read_mesh, read_poses, read_truth

FIT_POINTS = 20_000


@dataclass(frozen=True)
class Scores:
    """Everything that is measured of a result; distances in units of the data's world."""

    surface: SurfaceScore
    poses: PoseScore | None
    """None where no poses were given."""
    facts: MeshFacts
    scale: float
    """Of the similarity that took the result to the truth; 1 without alignment."""


def score_files(mesh_file: Path, truth_dir: Path, poses_file: Path | None, align: bool, threshold_pct: float) -> Scores:
    """Score a mesh file and a file of poses against a truth folder.

    Raises:
        PmniError: a file is missing or broken, or no true camera sees any of the mesh.
    """
    truth = read_truth(truth_dir)
    mesh = read_mesh(mesh_file)
    c2w = None if poses_file is None else read_poses(poses_file, len(truth.c2w))
    scores = score(mesh, c2w, truth, align, threshold_pct)
    if scores is None:
        advice = "is it in the data's world?" if align else "is it in the data's world, or does it need --align?"
        raise PmniError(f"{mesh_file}: none of the truth's cameras sees this mesh; {advice}")
    return scores


def score(
    mesh: trimesh.Trimesh, c2w: np.ndarray | None, truth: Truth, align: bool, threshold_pct: float = 1.0
) -> Scores | None:
    """Score a result in the data's world.

    Args:
        mesh: the result.
        c2w: (N, 4, 4) its poses, OpenCV axes, or None. With them the rotation of the alignment is the mean of what
            the orientations say, and only scale and shift are fitted to the surface; without, all seven parameters are.
        truth: what it should be.
        align: whether to take the result to the true world by a similarity first.
        threshold_pct: of the F-score, in % of the diameter.

    Returns:
        The scores, or None if no true camera sees any of the aligned result.
    """
    facts = mesh_facts(mesh)
    mesh = mesh.copy().apply_transform(truth.unit_from_world)
    c2w = None if c2w is None else transform_poses(truth.unit_from_world, c2w)
    similarity = np.eye(4)
    if align:
        points = np.asarray(mesh.sample(FIT_POINTS, seed=0))
        start = similarity if c2w is None else similarity_from_cameras(c2w, truth.c2w)
        true_rays = MeshRays(truth.mesh)
        true_seen = true_rays.visible_points(truth.K, truth.c2w, truth.width, truth.height)
        similarity = fit_similarity(points, true_rays, true_seen, start, rotate=c2w is None)
        mesh.apply_transform(similarity)
    surface = score_surface(mesh, truth.mesh, truth.K, truth.c2w, truth.width, truth.height, threshold_pct)
    if surface is None:
        return None
    poses = None
    if c2w is not None:
        poses = score_poses(transform_poses(similarity, c2w), truth.c2w, object_radius(truth.mesh))
    return Scores(
        surface=replace(
            surface,
            chamfer=truth.scale * surface.chamfer,
            accuracy=truth.scale * surface.accuracy,
            completeness=truth.scale * surface.completeness,
        ),
        poses=poses,
        facts=facts,
        scale=float(np.cbrt(np.linalg.det(similarity[:3, :3]))),
    )

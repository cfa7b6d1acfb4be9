# SPDX-License-Identifier: Apache-2.0
"""Errors of the meshes of several objects against the ground truth, after one alignment of everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment

from pmni_nerfstudio.data.result_files import read_mesh
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.geometry_scores import score_geometry
from pmni_nerfstudio.evaluation.ground_truth import GroundTruth
from pmni_nerfstudio.evaluation.metrics import PoseScore, SurfaceScore, score_surface
from pmni_nerfstudio.geometry.cameras import pixel_rays
from pmni_nerfstudio.geometry.ray_casting import RayCaster

TRUE_OBJECTS = "objects"
"""Folder of the true meshes of single objects, NAME.ply, in a ground-truth folder."""
_SAMPLES = 2000


@dataclass(frozen=True)
class ObjectScore:
    """Errors of one object, in the data's units."""

    truth: str
    """Name of the true object that it was compared with."""
    visible: SurfaceScore
    """Errors where cameras see the true object in front of the others."""
    whole: SurfaceScore
    """Errors where cameras would see the object if it stood alone."""


@dataclass(frozen=True)
class ObjectScores:
    """Errors of all objects and of the poses."""

    objects: dict[int, ObjectScore]
    """By the number of the object; without those that have no counterpart."""
    poses: PoseScore
    missing: list[str]
    """Names of true objects that were not reconstructed."""


def read_true_objects(folder: Path) -> dict[str, trimesh.Trimesh]:
    """True meshes in the data world, by name.

    Raises:
        PmniError: there are none, or one is invalid.
    """
    files = sorted((folder / TRUE_OBJECTS).glob("*.ply"))
    if not files:
        raise PmniError(f"{folder / TRUE_OBJECTS}: has no .ply files; put the true mesh of each object there")
    return {file.stem: read_mesh(file) for file in files}


def score_objects(
    meshes: Mapping[int, trimesh.Trimesh],
    c2w: Float[np.ndarray, "n 4 4"],
    views: Int[np.ndarray, " n"],
    truth: GroundTruth,
    true_meshes: Mapping[str, trimesh.Trimesh],
    align: bool,
    threshold: float,
) -> ObjectScores:
    """Score every object against the true one in the same place.

    Args:
        meshes: reconstructed meshes by number, in the data world of the poses.
        c2w: poses of some views in that world, OpenCV axes.
        views: indices of these views in the ground truth.
        truth: ground truth of the poses and of all objects as one surface.
        true_meshes: true meshes by name, in the data world.
        align: whether poses and meshes have a world of their own, up to one similarity.
        threshold: distance threshold of the F-score, in the data's units.

    Raises:
        PmniError: no camera sees the meshes.
    """
    everything = trimesh.util.concatenate(list(meshes.values()))
    assert isinstance(everything, trimesh.Trimesh)
    joint = score_geometry(everything, c2w, truth, align, threshold, views=views)
    if joint is None or joint.poses is None:
        raise PmniError("truth: no ground-truth camera sees the meshes; give the ground truth of the same scene")
    to_unit = np.linalg.inv(truth.world_from_unit)
    aligned = {n: mesh.copy().apply_transform(to_unit @ joint.similarity) for n, mesh in meshes.items()}
    true = {name: mesh.copy().apply_transform(to_unit) for name, mesh in true_meshes.items()}
    names, numbers = list(true), list(aligned)
    samples = {name: np.asarray(mesh.sample(_SAMPLES, seed=0)) for name, mesh in true.items()}
    distances = [[float(RayCaster(aligned[n]).distance(samples[name]).mean()) for name in names] for n in numbers]
    masks = dict(zip(names, visible_masks(list(true.values()), truth)))
    scores, unit = {}, truth.scale
    for i, j in zip(*linear_sum_assignment(np.array(distances))):
        mesh, name = aligned[numbers[i]], names[j]
        compared = [
            score_surface(
                mesh, true[name], truth.K, truth.c2w, truth.width, truth.height, threshold / unit, masks=pixels
            )
            for pixels in (masks[name], None)
        ]
        if compared[0] is not None and compared[1] is not None:
            scores[numbers[i]] = ObjectScore(name, *(_scaled(s, unit, threshold) for s in compared if s is not None))
    found = {score.truth for score in scores.values()}
    return ObjectScores(scores, joint.poses, [name for name in names if name not in found])


def visible_masks(meshes: list[trimesh.Trimesh], truth: GroundTruth) -> Bool[np.ndarray, "m n h w"]:
    """Pixels that show each of several meshes, the others in front of it considered; meshes in the truth's unit-sphere world."""
    shape = (len(truth.c2w), truth.height, truth.width)
    first, owner = np.full(shape, np.inf), np.full(shape, -1)
    for m, mesh in enumerate(meshes):
        rays = RayCaster(mesh)
        for view, pose in enumerate(truth.c2w):
            K = truth.K if truth.K.ndim == 2 else truth.K[view]
            distance = rays.cast(*pixel_rays(K, pose, truth.width, truth.height)).distance.reshape(shape[1:])
            nearer = distance < first[view]
            first[view][nearer], owner[view][nearer] = distance[nearer], m
    return np.stack([owner == m for m in range(len(meshes))])


def _scaled(score: SurfaceScore, unit: float, threshold: float) -> SurfaceScore:
    """A score in units of the data's world instead of the unit sphere's."""
    return SurfaceScore(
        chamfer=unit * score.chamfer,
        chamfer_pct=score.chamfer_pct,
        accuracy=unit * score.accuracy,
        completeness=unit * score.completeness,
        threshold=threshold,
        fscore=score.fscore,
        fscore_1pct=score.fscore_1pct,
    )

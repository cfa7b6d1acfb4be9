# SPDX-License-Identifier: Apache-2.0
"""Similarity alignment of a result to the ground truth, and errors after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from helpers.evaluation import C2W, HEIGHT, WIDTH, K, ball, joined, random_similarity

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.geometry_scores import score_geometry
from pmni_nerfstudio.evaluation.ground_truth import GroundTruth
from pmni_nerfstudio.evaluation.metrics import object_radius
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.synth.shapes import SHAPES
from pmni_nerfstudio.synth.surface import surface_mesh

ALL_PIXELS = np.ones((len(C2W), HEIGHT, WIDTH), dtype=bool)


@pytest.fixture(scope="module")
def truth() -> GroundTruth:
    world_from_unit = random_similarity(3, 30.0, 55.0, 20.0)
    mesh = surface_mesh(SHAPES["figure"], resolution=64)
    return GroundTruth(mesh, K, C2W, world_from_unit, ALL_PIXELS)


def moved_result(truth: GroundTruth, similarity: np.ndarray) -> tuple[trimesh.Trimesh, np.ndarray]:
    """Ground-truth mesh and poses, moved by a similarity of the data's world."""
    moved = similarity @ truth.world_from_unit
    return truth.mesh.copy().apply_transform(moved), transform_poses(moved, truth.c2w)


@pytest.mark.parametrize("seed", range(4))
def test_any_similarity_is_recovered_with_poses(truth: GroundTruth, seed: int):
    similarity = random_similarity(seed, 40.0 * seed, (0.4, 1.0, 1.7, 5.0)[seed], 100.0)
    mesh, c2w = moved_result(truth, similarity)
    found = score_geometry(mesh, c2w, truth, align=True)
    assert found is not None and found.poses is not None
    assert found.surface.chamfer_pct < 2e-4
    assert found.poses.rot_deg_max < 1e-4
    assert found.poses.position_pct < 0.02
    assert found.scale * (0.4, 1.0, 1.7, 5.0)[seed] == pytest.approx(1.0, abs=1e-5)
    assert found.surface.fscore == 1


@pytest.mark.parametrize("scale", [0.8, 1.3])
def test_position_errors_are_accurate_for_distant_cameras(truth: GroundTruth, scale: float):
    """A scale error of 1e-4 moves cameras at 15 radii by 0.16% of the object's radius; the alignment must be better."""
    similarity = random_similarity(4, 25.0, scale, 10.0)
    mesh, c2w = moved_result(truth, similarity)
    noise = 0.004 * np.random.default_rng(0).standard_normal((8, 3))
    noise -= noise.mean(0)
    noisy = transform_poses(
        similarity @ truth.world_from_unit, C2W + np.pad(noise[..., None], ((0, 0), (0, 1), (3, 0)))
    )
    np.testing.assert_allclose(noisy[:, :3, :3], c2w[:, :3, :3])
    found = score_geometry(mesh, noisy, truth, align=True)
    assert found is not None and found.poses is not None
    expected = 100 * np.linalg.norm(noise, axis=1).mean() / object_radius(truth.mesh)
    assert found.poses.position_pct == pytest.approx(expected, rel=0.01)


def test_a_small_similarity_is_recovered_from_the_surface_alone(truth: GroundTruth):
    about_object = np.eye(4)
    about_object[:3, 3] = -truth.world_from_unit[:3, 3]
    similarity = np.linalg.inv(about_object) @ random_similarity(5, 6.0, 1.07, 2.0) @ about_object
    mesh, _ = moved_result(truth, similarity)
    found = score_geometry(mesh, None, truth, align=True)
    assert found is not None and found.poses is None
    assert found.surface.chamfer_pct < 2e-4
    assert found.scale == pytest.approx(1 / 1.07, abs=1e-5)


def test_poses_determine_the_rotation_of_the_alignment(truth: GroundTruth):
    """A surface rotated relative to its own poses is an error that the alignment must not remove."""
    mesh, c2w = moved_result(truth, np.eye(4))
    about_object = np.eye(4)
    about_object[:3, 3] = -truth.world_from_unit[:3, 3]
    mesh.apply_transform(np.linalg.inv(about_object) @ random_similarity(2, 4.0, 1.0, 0.0) @ about_object)
    fixed, free = score_geometry(mesh, c2w, truth, align=True), score_geometry(mesh, None, truth, align=True)
    assert fixed is not None and free is not None
    assert free.surface.chamfer_pct < 2e-4
    assert fixed.surface.chamfer_pct > 0.2


def test_hidden_surface_does_not_affect_the_alignment():
    blob = surface_mesh(SHAPES["blob"], 64)
    truth = GroundTruth(blob, K, C2W, np.eye(4), ALL_PIXELS)
    core = ball(0.25, (0.0, 0.1, -0.1))
    assert (SHAPES["blob"].sdf(torch.from_numpy(core.vertices.copy())) < -0.1).all() and core.area > 0.1 * blob.area
    similarity = random_similarity(1, 20.0, 1.5, 30.0)
    result = joined(blob, core).apply_transform(similarity)
    found = score_geometry(result, transform_poses(similarity, C2W), truth, align=True)
    assert found is not None and found.scale == pytest.approx(1 / 1.5, rel=1e-5)


def test_without_alignment_a_scale_error_is_measured(truth: GroundTruth):
    sphere = GroundTruth(ball(0.7), K, C2W, truth.world_from_unit, ALL_PIXELS)
    grown = ball(0.735).apply_transform(truth.world_from_unit)
    found = score_geometry(grown, None, sphere, align=False)
    assert found is not None
    assert found.surface.chamfer == pytest.approx(0.035 * 55, rel=0.02)  # in the data's units
    assert found.surface.chamfer_pct == pytest.approx(2.5, rel=0.02)
    assert found.scale == 1


def test_alignment_needs_different_camera_centers(truth: GroundTruth):
    mesh, c2w = moved_result(truth, np.eye(4))
    c2w[:, :3, 3] = c2w[0, :3, 3]
    with pytest.raises(PmniError, match="share one camera center"):
        score_geometry(mesh, c2w, truth, align=True)


def test_alignment_of_an_unrelated_mesh_does_not_diverge(truth: GroundTruth):
    """Without a safeguard, ICP would shrink the mesh to a point."""
    rng = np.random.default_rng(0)
    soup = trimesh.Trimesh(rng.uniform(-1, 1, (6000, 3)), np.arange(6000).reshape(-1, 3), process=False)
    soup.apply_transform(truth.world_from_unit)
    found = score_geometry(soup, transform_poses(truth.world_from_unit, C2W), truth, align=True)
    assert found is not None and 0.3 < found.scale < 3.0
    assert found.surface.chamfer_pct > 5 and np.isfinite(found.surface.chamfer)

# SPDX-License-Identifier: Apache-2.0
"""Unknown pixels, where something else stands in front: they carve nothing, and count for nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers.scenes import SPHERE_CENTER, SPHERE_RADIUS, AnalyticScene, make_sphere

from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.data.patch_sampler import PatchSampler, PatchSamplerConfig, build_pools
from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.data.scene_writer import write_scene
from pmni_nerfstudio.data.split_views import select_views
from pmni_nerfstudio.evaluation.metrics import score_normals
from pmni_nerfstudio.geometry.interpolation import grid_points
from pmni_nerfstudio.model.supervision import Supervision
from pmni_nerfstudio.registration.alternation import AlternationSchedule, Level, alternate
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import contours
from pmni_nerfstudio.registration.cache import registration_key
from pmni_nerfstudio.registration.confidence import view_agreement
from pmni_nerfstudio.registration.pipeline import RegistrationSettings
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.starts import starts
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import views_of_scene


def half_hidden(scene: AnalyticScene) -> Scene:
    """The scene, in half of whose views something stands in front of the left part of the object."""
    whole = scene.in_memory()
    hidden = np.zeros_like(whole.masks)
    for view in range(0, whole.num_views, 2):
        columns = np.flatnonzero(whole.masks[view].any(axis=0))
        hidden[view, :, : int(columns.mean())] = True
    masks = whole.masks & ~hidden
    return replace(whole, masks=masks, normals=np.where(masks[..., None], whole.normals, 0), unknown=hidden)


@pytest.fixture(scope="module")
def sphere() -> AnalyticScene:
    return make_sphere()


@pytest.fixture(scope="module")
def hidden_scene(sphere) -> Scene:
    return half_hidden(sphere)


def test_the_surface_is_not_carved(hidden_scene):
    level = AlternationSchedule(levels=(Level(49, 3, hull_votes=1),))
    truth = (grid_points(49).numpy() - SPHERE_CENTER).astype(np.float32)
    truth = np.linalg.norm(truth, axis=-1) - SPHERE_RADIUS
    assert hidden_scene.c2w is not None
    poses, missing = Poses.from_c2w(hidden_scene.c2w), {}
    for name, scene in (("unknown", hidden_scene), ("background", replace(hidden_scene, unknown=None))):
        _, surface = alternate(views_of_scene(scene), poses, level, fixed_poses=True)
        missing[name] = (surface.sdf > 0)[truth < -0.05].mean()
        if name == "unknown":
            assert np.abs(surface.sdf - truth)[np.abs(truth) < 0.03].mean() < 0.015
    assert missing["unknown"] == 0
    assert missing["background"] > 0.3


def test_contours_are_those_of_the_object(hidden_scene, sphere):
    views, whole = views_of_scene(hidden_scene), views_of_scene(sphere.in_memory())
    own, true = contours(views, 1000), contours(whole, 1000)
    for view, (points, all_points) in enumerate(zip(own, true)):
        distances = np.linalg.norm(points[:, None] - all_points, axis=-1).min(axis=1)
        assert distances.max() < 1.0, "no contour along what stands in front"
        assert len(points) < 0.7 * len(all_points) if view % 2 == 0 else len(points) == len(all_points)


def test_agreement_of_views_is_that_of_what_they_show(hidden_scene):
    points = grid_points(49).numpy() - SPHERE_CENTER
    surface = Surface((np.linalg.norm(points, axis=-1) - SPHERE_RADIUS).astype(np.float32))
    assert hidden_scene.c2w is not None
    poses = Poses.from_c2w(hidden_scene.c2w)
    assert view_agreement(views_of_scene(hidden_scene), poses, surface).iou.min() > 0.9
    background = replace(hidden_scene, unknown=None)
    assert view_agreement(views_of_scene(background), poses, surface).iou.min() < 0.6


def test_batches_hold_no_patches_around_unknown_pixels(hidden_scene):
    unknown = hidden_scene.unknown
    assert unknown is not None
    pools = build_pools(hidden_scene.masks, range(7), 3, 4.0, unknown)
    everything = build_pools(hidden_scene.masks, range(7), 3, 4.0)
    sampler = PatchSampler(PatchSamplerConfig(), hidden_scene.masks, range(7), 9 * 500, unknown=unknown)
    assert not unknown.reshape(-1)[sampler.draw_centers(500).numpy()].any()
    assert pools.sizes[0] == everything.sizes[0] and (pools.sizes[1:] < everything.sizes[1:]).all()


def test_the_mask_loss_ignores_unknown_rays():
    directions = torch.tensor([[0.0, 0.0, 1.0]]).repeat(4, 1)
    origins = torch.tensor([[0.0, 0, -3], [0.4, 0, -3], [0.6, 0, -3], [0.9, 0, -3]])
    field = SimpleNamespace(sdf=lambda x: x.norm(dim=-1) - 0.5, inv_s=lambda: torch.tensor(20.0))
    near = torch.ones(4, 1, dtype=torch.bool)
    outputs = {"near": near, "origins": origins, "directions": directions, "t_min_sdf": torch.full((4, 1), 3.0)}
    grid = SimpleNamespace(closest_approach=lambda o, d, where: torch.full((len(o),), 3.0))

    def loss(mask: list[float], unknown: list[float] | None) -> float:
        hidden = None if unknown is None else torch.tensor(unknown)[:, None]
        rays = Supervision._mask_loss(outputs, torch.tensor(mask), hidden, cast(Any, field), cast(Any, grid))
        return float(rays)

    exact, wrong = loss([1, 1, 0, 0], None), loss([1, 0, 0, 0], None)
    assert wrong > exact + 0.1
    assert loss([1, 0, 0, 0], [0, 1, 0, 0]) < exact
    assert loss([1, 1, 0, 0], [0, 0, 0, 0]) == exact


def test_the_rendered_silhouette_does_not_count_there():
    mask, unknown = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    mask[2:6, 2:4], unknown[2:6, 4:6] = True, True
    rendered = np.zeros((8, 8, 3), np.float32)
    rendered[2:6, 2:6] = [0, 0, -1]
    reference = rendered * mask[..., None]
    assert score_normals(rendered, reference, mask, unknown).mask_iou == 1
    assert score_normals(rendered, reference, mask).mask_iou == 0.5


def test_a_scene_folder_keeps_them(tmp_path, sphere, hidden_scene):
    arguments = sphere.arguments() | {"depths": None, "masks": hidden_scene.masks}
    write_scene(tmp_path / "scene", **arguments, unknown=hidden_scene.unknown)
    read = read_scene(tmp_path / "scene")
    assert hidden_scene.unknown is not None and read.unknown is not None
    np.testing.assert_array_equal(read.unknown, hidden_scene.unknown & ~hidden_scene.masks)
    assert read.c2w is not None
    views = views_of_scene(select_views(read, [0, 3, 4], read.c2w, True))
    assert views.unknown is not None
    np.testing.assert_array_equal(views.unknown, read.unknown[[0, 3, 4]])
    half = read_scene(tmp_path / "scene", scale_factor=0.5)
    assert half.unknown is not None and half.unknown.shape == half.masks.shape
    assert half.unknown.mean() == pytest.approx(read.unknown.mean(), rel=0.1)
    for file in (tmp_path / "scene" / "mask_unknown").iterdir():
        write_png(file, np.zeros((40, 48), bool))
    assert read_scene(tmp_path / "scene").unknown is None
    key = registration_key(views_of_scene(read), None, RegistrationSettings())
    assert key != registration_key(views_of_scene(replace(read, unknown=None)), None, RegistrationSettings())


def test_rough_poses_are_a_start_as_they_are(hidden_scene):
    (start,) = starts(views_of_scene(hidden_scene), hidden_scene.c2w, None, 0, None)
    assert hidden_scene.c2w is not None
    np.testing.assert_allclose(start.poses.c2w(), hidden_scene.c2w, atol=1e-12)
    with pytest.raises(ValueError, match="rough poses are needed"):
        list(starts(views_of_scene(hidden_scene), None, None, 0, None))

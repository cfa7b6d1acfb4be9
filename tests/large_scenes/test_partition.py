"""Partition of a surface into blocks, and the pixels that show them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.fields.blended_blocks import BlendedBlocks
from pmni_nerfstudio.fields.levels import training_bytes
from pmni_nerfstudio.fields.sdf_field import PmniFieldConfig
from pmni_nerfstudio.geometry.interpolation import grid_points
from pmni_nerfstudio.geometry.transforms import transform_points
from pmni_nerfstudio.large_scenes.block_views import pixels_of_blocks, windows_of
from pmni_nerfstudio.large_scenes.partition import Partition, best_counts, partition, principal_axes
from pmni_nerfstudio.large_scenes.running import block_levels, partition_for
from pmni_nerfstudio.model.grid_levels import room_for_blocks
from pmni_nerfstudio.model.pmni_model import PmniModelConfig
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.synth.scene import SynthConfig, SynthScene, make_scene
from pmni_nerfstudio.synth.shapes import Shape, limb

BAR = Shape(lambda p: limb(p, (-0.6, -0.2, 0.0), (0.6, 0.2, 0.1), 0.15, 0.2), 1.05)


@lru_cache
def bar_scene() -> SynthScene:
    return make_scene(SynthConfig(views=6, width=60, height=50), BAR)


@lru_cache
def bar_surface() -> Surface:
    return Surface(BAR.sdf(grid_points(65)).numpy())


@lru_cache
def bar_blocks() -> Partition:
    return partition(bar_surface().mesh[0], 3, bar_surface().voxel)


def views_of(scene: SynthScene) -> Views:
    K = np.tile(scene.K, (len(scene.names), 1, 1))
    return Views(scene.names, scene.normals, scene.masks, K)


@pytest.mark.parametrize(
    ("extents", "count", "expected"),
    [((3.0, 1.0, 0.2), 4, (4, 1, 1)), ((1.0, 1.0, 0.1), 4, (2, 2, 1)), ((1.0, 2.0, 3.0), 1, (1, 1, 1))],
)
def test_longest_axes_are_cut(extents: tuple[float, ...], count: int, expected: tuple[int, ...]) -> None:
    assert best_counts(np.array(extents), count) == expected


def test_axes_are_those_of_the_object() -> None:
    rotation = Rotation.from_euler("xyz", [20, -50, 130], degrees=True).as_matrix()
    points = np.random.default_rng(0).uniform(-1, 1, (4000, 3)) * (3, 1, 0.2) @ rotation.T
    axes = principal_axes(points)
    np.testing.assert_allclose(np.linalg.det(axes), 1)
    np.testing.assert_allclose(np.abs(axes.T @ rotation), np.eye(3), atol=0.05)


def test_every_point_of_the_surface_is_in_a_block_and_its_sphere() -> None:
    parts, vertices = bar_blocks(), bar_surface().mesh[0]
    local = vertices @ parts.frame
    inside = np.stack([block.contains(local) for block in parts.blocks])
    assert inside.any(axis=0).all()
    assert 0.02 < (inside.sum(axis=0) > 1).mean() < 0.5, "blocks overlap, but not everywhere"
    for block, of_block in zip(parts.blocks, inside):
        assert block.radius < 0.75 * np.linalg.norm(np.ptp(local, axis=0)) / 2
        unit = transform_points(np.linalg.inv(parts.unit_from_block(block)), vertices[of_block])
        assert np.linalg.norm(unit, axis=1).max() < 0.93


def test_blocks_have_their_whole_weight_on_the_surface() -> None:
    parts, vertices = bar_blocks(), torch.from_numpy(bar_surface().mesh[0]).float()
    field = BlendedBlocks(3, 9)
    low, high = parts.cells()
    field.arrange(*(torch.from_numpy(array).float() for array in (parts.frame, low, high, parts.ramp)))
    for index, block in enumerate(parts.blocks):
        field.fill(index, torch.from_numpy(block.center), block.radius, torch.zeros(3, 3, 3))
    weights = field.weights(vertices)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(len(vertices)), atol=1e-4, rtol=0)
    local = vertices.numpy() @ parts.frame
    for block, weight in zip(parts.blocks, weights.numpy()):
        assert block.contains(local[weight > 0]).all(), "a block counts only where it is observed"


def test_pixels_show_the_block_that_their_rays_meet() -> None:
    scene, parts = bar_scene(), bar_blocks()
    views = views_of(scene)
    included = np.ones(len(views), dtype=bool)
    included[4] = False
    pixels = pixels_of_blocks(views, scene.c2w, bar_surface(), parts, views, included)
    everything = slice(0, views.height), slice(0, views.width)
    for view in range(len(views)):
        y, x = np.nonzero(scene.masks[view])
        rays = np.stack([x, y, np.ones_like(x)], axis=1) @ np.linalg.inv(scene.K).T
        points = transform_points(scene.c2w[view], rays * scene.depth[view][y, x, None]) @ parts.frame
        for index, block in enumerate(parts.blocks):
            shown = pixels.shown(view, index, *everything)[y, x]
            if view == 4:
                assert not shown.any()
                continue
            true = block.contains(points)
            assert (shown != true).mean() < 0.05, "only pixels at the border of a block may differ"
    for index in range(3):
        assert set(pixels.views_of(index, views.masks)) <= {0, 1, 2, 3, 5}


def test_reduced_pixels_are_those_of_the_full_frames() -> None:
    scene, parts = bar_scene(), bar_blocks()
    full = views_of(scene)
    included = np.ones(len(full), dtype=bool)
    fine = pixels_of_blocks(full, scene.c2w, bar_surface(), parts, full, included)
    coarse = pixels_of_blocks(full.strided(2), scene.c2w, bar_surface(), parts, full, included)
    part = slice(10, 40), slice(7, 55)
    for view in range(len(full)):
        mask = scene.masks[view][part]
        for index in range(3):
            a, b = fine.shown(view, index, *part), coarse.shown(view, index, *part)
            assert (a != b)[mask].mean() < 0.15, "a column of pixels on each side of a border may differ"


def test_windows_hold_the_whole_block_also_where_it_is_hidden() -> None:
    scene, parts = bar_scene(), bar_blocks()
    views, poses = views_of(scene), Poses.from_c2w(scene.c2w)
    vertices = bar_surface().mesh[0]
    chosen = np.array([0, 2, 3])
    for block in parts.blocks:
        points = vertices[block.contains(vertices @ parts.frame)]
        windows = windows_of(chosen, points, poses, views)
        assert windows.size[0] < views.width
        for view, corner in zip(chosen, windows.corner):
            camera = poses.to_camera(int(view), points)
            image = camera[:, :2] / camera[:, 2:] * scene.K[0, 0] + scene.K[:2, 2] - corner
            assert (image > 0).all() and (image < np.array(windows.size) - 1).all()


def test_levels_of_a_block_have_the_voxels_of_the_whole() -> None:
    levels = block_levels((65, 129, 257, 513), 0.37)
    assert [b - 1 for b in levels[1:]] == [2 * (a - 1) for a in levels[:-1]]
    assert 0.95 < (2 * 0.37 / (levels[-1] - 1)) / (2 / 512) <= 1
    assert block_levels((), 0.37) == ()


def test_as_many_blocks_as_the_memory_needs() -> None:
    vertices, voxel = bar_surface().mesh[0], bar_surface().voxel
    levels = (65, 129, 257)
    config = PmniModelConfig(max_memory="40M")
    assert room_for_blocks(1, "40M", PmniFieldConfig(encoding="grid", grid_vertices=levels)) > 1
    parts = partition_for(config, levels, vertices, voxel)
    fewer = partition(vertices, len(parts.blocks) - 1, voxel)
    largest, before = (
        training_bytes(block_levels(levels, max(block.radius for block in some.blocks))) for some in (parts, fewer)
    )
    assert largest <= 40 << 20 < before
    assert room_for_blocks(1, "400M", PmniFieldConfig(encoding="grid", grid_vertices=levels)) == 1
    with pytest.raises(PmniError, match="max-memory: each of 64 blocks needs .*M; give more"):
        partition_for(PmniModelConfig(max_memory="1K"), levels, vertices, voxel)

"""Views of different size in one scene, and close-ups that their frame cuts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.scenes import SPHERE_CENTER, SPHERE_RADIUS, analytic_scene, fitting_intrinsics, hit_sphere, look_at

from pmni_nerfstudio.data.close_ups import find_close_ups, is_cut
from pmni_nerfstudio.data.images import read_normals
from pmni_nerfstudio.data.patch_sampler import PatchSampler, PatchSamplerConfig
from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.data.scene_summary import summarize
from pmni_nerfstudio.data.scene_writer import write_scene
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.export.maps import RenderedView, make_map_folders, write_maps
from pmni_nerfstudio.geometry.hull import hull_distance, mask_distances
from pmni_nerfstudio.importers.assemble import assemble
from pmni_nerfstudio.importers.source import Frame, Source
from pmni_nerfstudio.objects.object_scenes import write_object_scene
from pmni_nerfstudio.objects.object_views import ObjectViews
from pmni_nerfstudio.registration.views import views_of_scene
from pmni_nerfstudio.sequences.block import _write_scene as write_frame

WHOLE, CLOSE = (48, 40), (64, 56)
TOP = SPHERE_CENTER + np.array([0.0, 0.0, SPHERE_RADIUS])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six views of a sphere; a close-up of its top, whose lower corners are background, and one inside the mask."""
    azimuth = 2 * np.pi * np.arange(6) / 6
    around = np.array([look_at(np.array([6 * np.cos(a), 6 * np.sin(a), 2.0])) for a in azimuth])
    above = np.array([0.0, 0.0, 0.25])
    near = np.array(
        [look_at(TOP + np.array([3.0, 0.4, 0.0]), TOP + above), look_at(np.array([3.0, 0.0, 0.2]), SPHERE_CENTER)]
    )
    focal = 3 / (np.linalg.norm(around[0, :3, 3]) / fitting_intrinsics(*WHOLE, 6.3)[0, 0] / 4)
    K = np.array([[focal, 0, 31.5], [0, focal, 27.5], [0, 0, 1.0]])
    parts = [analytic_scene(hit_sphere, fitting_intrinsics(*WHOLE, 6.3), around, WHOLE)]
    parts.append(analytic_scene(hit_sphere, K, near, CLOSE))
    sizes = np.array([part.size for part in parts for _ in part.names])
    largest = sizes.max(axis=0)

    def joined(name: str) -> np.ndarray:
        maps = [getattr(part, name) for part in parts]
        return np.concatenate(
            [
                np.pad(
                    m, [(0, 0), (0, largest[1] - m.shape[1]), (0, largest[0] - m.shape[2])] + [(0, 0)] * (m.ndim - 3)
                )
                for m in maps
            ]
        )

    root = tmp_path_factory.mktemp("mixed") / "scene"
    write_scene(
        root,
        names=[f"{i:02d}" for i in range(8)],
        K=np.concatenate([part.K for part in parts]),
        c2w=np.concatenate([part.c2w for part in parts]),
        world_from_unit=np.eye(4),
        masks=joined("masks"),
        normals=joined("normals").astype(np.float32),
        sizes=sizes,
    )
    return root


@pytest.fixture(scope="module")
def scene(folder: Path) -> Scene:
    return read_scene(folder)


def test_views_keep_their_size_and_a_close_up_may_be_full(scene: Scene) -> None:
    assert scene.sizes is not None and scene.unknown is not None
    assert scene.sizes.tolist() == [[48, 40]] * 6 + [[64, 56]] * 2
    assert scene.masks.shape == (8, 56, 64)
    assert scene.masks[7].all() and scene.masks[6].any()
    assert not scene.masks[:6, 40:].any() and not scene.normals[:6, :, 48:].any()
    assert not scene.unknown[:6].any(), "views of the whole object have background around their frame"
    corner = scene.unknown[6, 0, 0], scene.unknown[6, -1, 0], scene.unknown[6, 10, 30]
    assert corner == (True, True, False), "only the border of a close-up is unknown"
    assert not any("reaches the image border" in line for line in scene.warnings)
    assert summarize(scene).close_ups.tolist() == [False] * 6 + [True] * 2


def test_a_close_up_does_not_carve_beyond_its_frame(scene: Scene) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 3))
    points = SPHERE_CENTER + 0.93 * SPHERE_RADIUS * points / np.linalg.norm(points, axis=1, keepdims=True)

    def share_inside(silhouettes: np.ndarray) -> float:
        assert scene.c2w is not None
        return float((hull_distance(points, mask_distances(silhouettes), scene.K, scene.c2w) < 0).mean())

    assert share_inside(scene.possible) == 1
    assert share_inside(scene.masks) < 0.99, "the test has no point beyond a corner of the frame"


def test_equal_views_have_no_close_ups_whatever_their_frames_cut(scene: Scene) -> None:
    cut = np.array([is_cut(mask[scene.frame(i)]) for i, mask in enumerate(scene.masks)])
    assert cut.tolist() == [False] * 6 + [True] * 2
    assert scene.c2w is not None
    same = [0, 1, 2, 3, 4, 5, 0]
    assert not find_close_ups(cut[[*range(6), 7]], scene.K[same], scene.c2w[same]).any()
    assert not find_close_ups(cut, scene.K, None).any()


def test_different_sizes_need_poses(folder: Path, tmp_path: Path) -> None:
    for name in ("mask", "normal_camera_space_GT"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "intrinsics.json").write_text('{"fl_x": 100, "fl_y": 100, "cx": 24, "cy": 20, "w": 48, "h": 40}')
    with pytest.raises(SceneError, match=r"06.*64x56.*without poses"):
        read_scene(tmp_path)


def test_prepared_views_keep_their_pixels(folder: Path, scene: Scene, tmp_path: Path) -> None:
    assert scene.c2w is not None
    frames = tuple(
        Frame(name, scene.normal_files[i], scene.K[i], scene.mask_files[i], c2w=scene.c2w[i])
        for i, name in enumerate(scene.names)
    )
    made = assemble(Source("test", frames, "camera", np.eye(4)), tmp_path)
    again = read_scene(tmp_path)
    assert "48x40 (6), 64x56 (2)" in made.description
    np.testing.assert_array_equal(again.masks, scene.masks)
    np.testing.assert_allclose(again.normals.astype(float), scene.normals.astype(float), atol=1e-3)
    np.testing.assert_allclose(again.K, scene.K, atol=1e-6)


def test_each_view_is_reduced_by_its_own_size_and_padding_is_dropped(scene: Scene) -> None:
    views = views_of_scene(scene, max_pixels=CLOSE[0] * CLOSE[1] // 4)
    assert views.sizes is not None
    assert views.sizes.tolist() == [[48, 40]] * 6 + [[32, 28]] * 2
    np.testing.assert_allclose(views.K[7, 0, 0], scene.K[7, 0, 0] / 2)
    whole = views.subset(range(6))
    assert whole.sizes is None and whole.unknown is None and whole.masks.shape == (6, 40, 48)
    np.testing.assert_array_equal(whole.masks, scene.masks[:6, :40, :48])


def test_close_ups_get_the_share_of_their_views_of_the_patches(scene: Scene) -> None:
    config = PatchSamplerConfig(patch_size=1)
    groups = [list(range(6)), [6, 7]]
    sampler = PatchSampler(config, scene.masks, range(8), 8000, unknown=scene.unknown, groups=groups)
    torch.manual_seed(0)
    batch = sampler.sample({"mask": torch.from_numpy(scene.masks)[..., None]})
    view, row, column = batch["indices"].T
    assert abs(float((view >= 6).float().mean()) - 0.25) < 0.01
    np.testing.assert_array_equal(batch["mask"][:, 0].numpy() > 0.5, scene.masks[view, row, column])
    pixels = replace(config)
    plain = PatchSampler(pixels, scene.masks, range(8), 8000, unknown=scene.unknown).sample({})["indices"]
    assert float((plain[:, 0] >= 6).float().mean()) > 0.4, "without groups, pixels count alike"


def test_scenes_of_objects_and_frames_and_written_maps_keep_each_views_size(scene: Scene, tmp_path: Path) -> None:
    assert scene.c2w is not None
    views = ObjectViews(1, [1, 6, 7], scene.masks[[1, 6, 7]], np.zeros_like(scene.masks[:3]), np.eye(4), np.zeros(3))
    write_object_scene(tmp_path / "object", scene, scene.c2w, views)
    again = read_scene(tmp_path / "object")
    assert again.facts.sizes.tolist() == [[48, 40], [64, 56], [64, 56]]
    np.testing.assert_array_equal(again.masks, scene.masks[[1, 6, 7]])
    write_frame(tmp_path / "frame", scene)
    assert read_scene(tmp_path / "frame").facts.sizes.tolist() == scene.facts.sizes.tolist()
    make_map_folders(tmp_path)
    normals = scene.normals.astype(np.float32)
    for view in (0, 7):
        write_maps(tmp_path, scene, view, RenderedView(normals[view], np.ones_like(normals[view, ..., 0])))
        written = read_normals(tmp_path / "normal_camera_space" / f"{scene.names[view]}.exr")
        np.testing.assert_allclose(written * [1, -1, -1], normals[view][scene.frame(view)], atol=1e-3)

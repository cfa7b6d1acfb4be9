# SPDX-License-Identifier: Apache-2.0
"""Consistency of the rays, normals and poses of the data manager, on a sphere known in closed form."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
import tyro
from helpers.scenes import hit_sphere, make_sphere
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader
from nerfstudio.model_components.ray_generators import RayGenerator

from pmni_nerfstudio.data import dataparser
from pmni_nerfstudio.data.datamanager import PmniDataManager, PmniDataManagerConfig
from pmni_nerfstudio.data.dataparser import PmniDataParserConfig
from pmni_nerfstudio.data.dataset import PmniDataset
from pmni_nerfstudio.data.depths import read_depths
from pmni_nerfstudio.data.patch_sampler import PatchSamplerConfig
from pmni_nerfstudio.data.ray_generator import PatchRayGenerator
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.data.split_views import split_views_of
from pmni_nerfstudio.errors import SceneError


@pytest.fixture
def manager_of(monkeypatch: pytest.MonkeyPatch):
    """Factory of data managers for a scene in memory; settings of the parser and the sampler are passed on to them."""

    def manager(scene: Scene, test_mode: str = "val", **settings) -> PmniDataManager:
        monkeypatch.setattr(dataparser, "read_scene", lambda *args: scene)
        return configured(**settings).setup(device="cpu", test_mode=test_mode)

    return manager


def configured(**settings) -> PmniDataManagerConfig:
    parts = {cls: {} for cls in (PmniDataParserConfig, PatchSamplerConfig, PmniDataManagerConfig)}
    for name, value in settings.items():
        # Names of the parser and the sampler take precedence over inherited, hidden settings of the manager.
        owner = next(cls for cls in parts if name in {f.name for f in dataclasses.fields(cls)})
        parts[owner][name] = value
    return PmniDataManagerConfig(
        dataparser=PmniDataParserConfig(**parts[PmniDataParserConfig]),
        pixel_sampler=PatchSamplerConfig(**parts[PatchSamplerConfig]),
        **parts[PmniDataManagerConfig],
    )


def check_against_sphere(bundle, batch, c2w: np.ndarray) -> None:
    """Rays of mask pixels hit the sphere where its normal, in camera axes, equals the batch's; other rays miss it."""
    view = batch["indices"][:, 0].numpy()
    on_mask = batch["mask"][:, 0].numpy() > 0
    distance, normal = hit_sphere(bundle.origins.double().numpy(), bundle.directions.double().numpy())
    # In single precision, half a percent of the pixels at the rim may be on either side.
    assert (np.isfinite(distance) == on_mask).mean() > 0.99
    both = on_mask & np.isfinite(distance)
    assert both.sum() > 0.3 * len(both)
    camera_normal = np.einsum("rji,rj->ri", c2w[view][:, :3, :3], normal)
    # Where rays graze the sphere, rounding errors of the ray change the normal considerably.
    facing = both & (-(normal * bundle.directions.numpy()).sum(-1) > 0.2)
    np.testing.assert_allclose(camera_normal[facing], batch["normal"].numpy()[facing], atol=3e-3)


@pytest.mark.parametrize("settings", [{}, {"exclude_views": (1, 4)}, {"patch_size": 1}])
def test_rays_hit_the_sphere_where_the_batch_says(sphere_scene, manager_of, settings):
    manager = manager_of(sphere_scene, train_num_rays_per_batch=4000, eval_num_rays_per_batch=4000, **settings)
    for next_batch, dataset in ((manager.next_train, manager.train_dataset), (manager.next_eval, manager.eval_dataset)):
        bundle, batch = next_batch(0)
        check_against_sphere(bundle, batch, split_views_of(dataset.metadata).c2w)
        assert set(batch["indices"][:, 0].tolist()) == set(range(len(dataset)))


def test_draw_from_restricts_batches_to_the_given_views(sphere_scene, manager_of):
    manager = manager_of(sphere_scene, train_num_rays_per_batch=4000, exclude_views=(1,))
    manager.draw_from([0, 2, 3, 5])
    bundle, batch = manager.next_train(0)
    check_against_sphere(bundle, batch, split_views_of(manager.train_dataset.metadata).c2w)
    assert set(batch["indices"][:, 0].tolist()) == {0, 2, 3, 5}
    assert len(bundle) == manager.get_train_rays_per_batch()


def test_rays_hit_the_sphere_from_files_and_depths_lie_on_it(sphere_folder):
    config = configured(data=sphere_folder, train_num_rays_per_batch=4000, patch_size=5)
    manager = config.setup(device="cpu", test_mode="val")
    bundle, batch = manager.next_train(0)
    check_against_sphere(bundle, batch, split_views_of(manager.train_dataset.metadata).c2w)
    depths = read_depths(manager.train_dataset.scene)
    depth = torch.from_numpy(depths)[tuple(batch["indices"].unbind(-1))]
    known = depth > 0
    assert torch.equal(known, batch["mask"][:, 0] > 0)
    # z depth times the length of the ray of depth one is the distance along the ray.
    distance, _ = hit_sphere(bundle.origins.double().numpy(), bundle.directions.double().numpy())
    from_batch = (depth * bundle.metadata["directions_norm"][:, 0]).numpy()
    grazing = ~(np.abs(distance - from_batch) < 5e-3)
    assert grazing[known].mean() < 0.02


def test_halved_maps_still_agree_with_their_rays(sphere_folder):
    manager = configured(data=sphere_folder, scale_factor=0.5).setup(device="cpu", test_mode="val")
    depths = read_depths(manager.train_dataset.scene)
    assert depths.shape == (7, 20, 24)
    bundle, batch = manager.next_train(0)
    distance, normal = hit_sphere(bundle.origins.double().numpy(), bundle.directions.double().numpy())
    view = batch["indices"][:, 0].numpy()
    camera_normal = np.einsum("rji,rj->ri", split_views_of(manager.train_dataset.metadata).c2w[view][:, :3, :3], normal)
    # Away from the rim, where a pixel's mean normal is not that of its center.
    inner = (batch["mask"][:, 0].numpy() > 0) & (-(normal * bundle.directions.numpy()).sum(-1) > 0.6)
    assert inner.sum() > 100
    np.testing.assert_allclose(camera_normal[inner], batch["normal"].numpy()[inner], atol=0.02)
    assert (
        np.abs(
            depths[tuple(batch["indices"].numpy()[inner].T)] * bundle.metadata["directions_norm"].numpy()[inner, 0]
            - distance[inner]
        ).max()
        < 0.1
    )


def test_keys_shapes_and_types_of_batches_and_bundles(sphere_scene, manager_of):
    manager = manager_of(sphere_scene, train_num_rays_per_batch=1000)
    bundle, batch = manager.next_train(0)
    rays = 999
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in batch.items()}
    assert shapes == {
        "indices": ((rays, 3), torch.int64),
        "normal": ((rays, 3), torch.float32),
        "mask": ((rays, 1), torch.float32),
        "image": ((rays, 3), torch.float32),
    }
    assert manager.get_train_rays_per_batch() == len(bundle) == rays
    assert torch.equal(bundle.camera_indices[:, 0], batch["indices"][:, 0])
    assert bundle.metadata["patch_size"].tolist() == [[3]] * rays
    assert bundle.metadata["patch_size"].dtype == torch.int64
    assert manager.train_count == 1 and manager.eval_count == 0


def test_rays_equal_nerfstudios(sphere_scene, manager_of):
    manager = manager_of(sphere_scene, pose_noise_rotation_deg=5, pose_noise_translation=0.1)
    cameras = manager.train_dataset.cameras
    _, batch = manager.next_train(0)
    ours = PatchRayGenerator(cameras, patch_size=3)(batch["indices"])
    theirs = RayGenerator(cameras)(batch["indices"])
    torch.testing.assert_close(ours.origins, theirs.origins, rtol=0, atol=0)
    torch.testing.assert_close(ours.directions, theirs.directions, rtol=0, atol=3e-7)
    torch.testing.assert_close(ours.pixel_area, theirs.pixel_area, rtol=5e-3, atol=0)
    assert torch.equal(ours.camera_indices, theirs.camera_indices)
    assert ours.metadata.keys() == {"directions_norm", "patch_size"}
    torch.testing.assert_close(ours.metadata["directions_norm"], theirs.metadata["directions_norm"])
    assert ours.shape == theirs.shape and ours.times is theirs.times is None


@pytest.mark.parametrize("requested", [1, 50, 32768])
def test_any_number_of_rays_is_rounded_down_to_whole_patches(sphere_scene, manager_of, requested):
    manager = manager_of(sphere_scene)
    manager.train_pixel_sampler.num_rays_per_batch = requested  # as ns-export does
    bundle, batch = manager.next_train(0)
    assert len(bundle) == len(batch["normal"]) == manager.get_train_rays_per_batch() == max(requested // 9, 1) * 9
    manager = manager_of(sphere_scene, train_num_rays_per_batch=requested, eval_num_rays_per_batch=requested)
    assert len(manager.next_eval(0)[0]) == manager.get_eval_rays_per_batch() == max(requested // 9, 1) * 9


def test_eval_cameras_have_the_index_of_their_training_view(sphere_scene, manager_of):
    manager = manager_of(sphere_scene)
    seen = []
    for camera, batch in manager.fixed_indices_eval_dataloader:
        assert camera.shape == (1,)
        assert int(camera.metadata["cam_idx"]) == batch["image_idx"]
        seen.append(batch["image_idx"])
    assert seen == list(range(7)) and len(manager.fixed_indices_eval_dataloader) == 7
    bundle, batch = manager.next_eval(0)
    assert torch.equal(bundle.camera_indices[:, 0], batch["indices"][:, 0])


def test_held_out_cameras_have_no_training_view_index(sphere_scene, manager_of):
    manager = manager_of(sphere_scene, exclude_views=(2, 6))
    views = [(camera, batch) for camera, batch in manager.fixed_indices_eval_dataloader]
    assert len(views) == 2
    for (camera, batch), view in zip(views, (2, 6), strict=True):
        assert camera.metadata == {}
        np.testing.assert_allclose(batch["normal"], sphere_scene.normals[view].astype(np.float32))
        np.testing.assert_array_equal(batch["mask"][..., 0], sphere_scene.masks[view])
    # An index would apply the pose correction of a training view to their rays.
    assert manager.next_eval(0)[0].camera_indices is None
    assert set(manager.next_train(0)[0].camera_indices[:, 0].tolist()) == set(range(5))


def test_eval_images_are_whole_views(sphere_scene, manager_of):
    manager = manager_of(sphere_scene)
    for camera, batch in (manager.next_eval_image(0), manager.eval_dataloader.get_camera(3)):
        assert {"image", "normal", "mask", "image_idx"} <= batch.keys()
        bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
        assert bundle.shape == batch["image"].shape[:2] == batch["normal"].shape[:2] == batch["mask"].shape[:2]
        assert "patch_size" not in bundle.metadata
        view = batch["image_idx"]
        distance, _ = hit_sphere(bundle.origins.double().numpy(), bundle.directions.double().numpy())
        assert (np.isfinite(distance) == sphere_scene.masks[view]).mean() > 0.99


def test_datasets_work_without_samplers(sphere_scene, manager_of):
    """`ns-render dataset` creates no sampler and iterates over the dataset with its own data loader."""
    manager = manager_of(sphere_scene, test_mode="inference")
    loader = FixedIndicesEvalDataloader(input_dataset=manager.train_dataset, device="cpu", num_workers=4)
    assert [int(camera.metadata["cam_idx"]) for camera, _ in loader] == list(range(7))
    assert manager.train_pixel_sampler is None


def test_dataset_images_are_normals_in_the_usual_color_code(sphere_scene, manager_of):
    dataset = manager_of(sphere_scene).train_dataset
    assert isinstance(dataset, PmniDataset) and isinstance(dataset, InputDataset)
    item = dataset[4]
    mask = item["mask"][..., 0]
    assert item["image"].shape == (40, 48, 3) and item["image"].dtype == torch.float32
    assert (item["image"][~mask] == 1).all() and item["image"].min() >= 0
    rows, columns = torch.nonzero(mask, as_tuple=True)
    red, green, blue = item["image"][mask].T
    # Normals of a convex object point right at its right, up at its top, and towards the viewer in the middle.
    assert red[columns.argmax()] > 0.8 and red[columns.argmin()] < 0.2
    assert green[rows.argmin()] > 0.8 and green[rows.argmax()] < 0.2
    assert (blue > 0.45).all() and blue.max() > 0.99
    np.testing.assert_allclose(dataset.get_image_uint8(4), item["image"] * 255, atol=0.51)
    assert dataset.get_numpy_image(4).dtype == np.uint8
    assert torch.equal(dataset.get_image_float32(4), item["image"])


def test_maps_share_the_memory_of_the_scene(sphere_scene, manager_of):
    manager = manager_of(sphere_scene)
    for dataset in (manager.train_dataset, manager.eval_dataset):
        assert dataset.scene is sphere_scene
        assert split_views_of(dataset.metadata).normals is sphere_scene.normals
        assert dataset.maps["normal"].data_ptr() == sphere_scene.normals.ctypes.data
        assert dataset.maps["mask"].data_ptr() == sphere_scene.masks.ctypes.data
    assert manager.eval_pixel_sampler.pools is manager.train_pixel_sampler.pools
    held_out = manager_of(sphere_scene, exclude_views=(0,))
    assert held_out.eval_pixel_sampler.pools is not held_out.train_pixel_sampler.pools


def test_checkpoints_contain_no_data(sphere_scene, manager_of):
    manager = manager_of(sphere_scene)
    assert isinstance(manager, VanillaDataManager)
    assert list(manager.state_dict()) == [] and list(manager.parameters()) == []
    assert manager.get_param_groups() == {}


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"patch_size": 2}, "odd"), ({"exclude_views": (99,)}, "no view 99")],
)
def test_invalid_settings_exit_with_a_one_line_error(sphere_scene, manager_of, capsys, settings, words):
    with pytest.raises(SystemExit) as caught:
        manager_of(sphere_scene, **settings)
    assert caught.value.code == 1
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1


def test_depth_maps_of_another_size_raise_an_error(sphere_scene, tmp_path):
    depths = make_sphere().depths
    files = tuple(tmp_path / f"{name}.npy" for name in sphere_scene.names)
    for file, depth in zip(files, depths, strict=True):
        np.save(file, depth)
    np.save(files[3], depths[3][:, :30])
    with pytest.raises(SceneError, match="03.npy: 30x40"):
        read_depths(dataclasses.replace(sphere_scene, depth_files=files))


def test_command_line_has_no_unused_flags(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(PmniDataManagerConfig, args=["--help"])
    printed = capsys.readouterr().out
    flags = set(re.findall(r"--[\w.-]+", printed))
    assert {"--dataparser.exclude-views", "--pixel-sampler.patch-size"} <= flags
    assert not {"--patch-size", "--camera-res-scale-factor", "--images-on-gpu", "--pixel-sampler.ignore-mask"} & flags
    assert "Unused" not in printed
    parsed = tyro.cli(PmniDataManagerConfig, args=["--dataparser.exclude-views", "3", "7"])
    assert parsed.dataparser.exclude_views == (3, 7)

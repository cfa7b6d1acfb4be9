# SPDX-License-Identifier: Apache-2.0
"""`pmni convert`: cameras, depths, normals and masks as nerfstudio's sdfstudio parser reads them show the true sphere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.holes import holes_of
from helpers.scenes import SPHERE_CENTER, SPHERE_RADIUS, hit_sphere, make_sphere
from nerfstudio.data.dataparsers.sdfstudio_dataparser import SDFStudioDataParserConfig
from nerfstudio.data.datasets.sdf_dataset import SDFDataset
from PIL import Image
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.commands.convert import ConvertCommand
from pmni_nerfstudio.data.images import read_mask, write_exr, write_png
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.data.scene_writer import write_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.export.cameras import write_result_cameras
from pmni_nerfstudio.geometry.transforms import transform_poses


def convert(scene: Path, out: Path, **options) -> Path:
    ConvertCommand(data=scene, output_dir=out, **options).main()
    return out


def stock_dataset(folder: Path, auto_orient: bool = False) -> SDFDataset:
    """Dataset as nerfstudio reads it."""
    config = SDFStudioDataParserConfig(data=folder, auto_orient=auto_orient, include_mono_prior=True)
    return SDFDataset(config.setup().get_dataparser_outputs("train"))


def meta_of(folder: Path) -> dict:
    return json.loads((folder / "meta_data.json").read_text())


@pytest.mark.parametrize("auto_orient", [False, True])
def test_depths_normals_and_masks_agree_with_rays_to_the_sphere(sphere_folder: Path, tmp_path: Path, auto_orient: bool):
    main(["convert", str(sphere_folder), "--to", "sdfstudio", "--output-dir", str(tmp_path / "out")])
    dataset, frames = stock_dataset(tmp_path / "out", auto_orient), meta_of(tmp_path / "out")["frames"]
    oriented = np.eye(4)
    if auto_orient:
        oriented[:3] = dataset.metadata["transform"].numpy()
        assert np.abs(oriented - np.eye(4)).max() > 0.05  # nerfstudio does change the orientation
    assert len(dataset) == 7
    for view in range(len(dataset)):
        rays, data = dataset.cameras.generate_rays(view, keep_shape=True), dataset[view]
        # To the unit-sphere world, in which the ground truth is given.
        back = np.linalg.inv(oriented)
        origins = rays.origins.numpy().astype(float) @ back[:3, :3].T + back[:3, 3]
        directions = rays.directions.numpy().astype(float) @ back[:3, :3].T
        distance, normals = hit_sphere(origins, directions)
        mask = read_mask(tmp_path / "out" / frames[view]["foreground_mask"])
        # Rays that graze the silhouette within 1/500 of a pixel are undecidable in single precision.
        grazing = np.abs(np.linalg.norm(np.cross(SPHERE_CENTER - origins, directions), axis=-1) - SPHERE_RADIUS) < 1e-4
        assert grazing.sum() < 4
        np.testing.assert_array_equal(mask[~grazing], np.isfinite(distance)[~grazing])
        hit = mask & ~grazing
        along = (data["depth"].numpy() * rays.metadata["directions_norm"][..., 0].numpy())[hit]
        points = origins[hit] + directions[hit] * along[:, None]
        # The tolerance is that of single precision at a distance of 15 radii.
        np.testing.assert_allclose(np.linalg.norm(points - SPHERE_CENTER, axis=-1), SPHERE_RADIUS, atol=5e-5)
        assert (data["depth"].numpy()[~mask] == 0).all()
        known = data["normal"].numpy() @ back[:3, :3].T
        np.testing.assert_allclose(known[hit], normals[hit], atol=2e-3)
        assert (known[~mask] == 0).all()


def test_shaded_images_have_one_light_fixed_in_the_world(sphere_folder: Path, tmp_path: Path):
    dataset = stock_dataset(convert(sphere_folder, tmp_path / "out"))
    normals, grays = [], []
    for view in range(len(dataset)):
        data, mask = dataset[view], read_mask(tmp_path / "out" / "mask" / f"{view:02d}.png")
        image = data["image"].numpy() * 255
        assert image.shape == (*mask.shape, 3) and (image == image[..., :1]).all()
        assert (image[~mask] == 0).all()
        normals.append(data["normal"].numpy()[mask])
        grays.append(image[mask, 0])
    n, gray = np.concatenate(normals), np.concatenate(grays)
    system = np.c_[n, np.ones(len(n))]
    light = np.linalg.lstsq(system, gray, rcond=None)[0]
    # In all views the gray value is the same linear function of the world-space normal, up to rounding.
    assert np.abs(system @ light - gray).max() < 1
    assert np.linalg.norm(light[:3]) > 80 and gray.min() > 10


def test_holes_have_no_normals_but_are_shaded(tmp_path: Path):
    scene = make_sphere()
    holes = holes_of(scene.masks)
    scene.write(tmp_path / "whole")
    replace(scene, normals=np.where(holes[..., None], 0, scene.normals)).write(tmp_path / "holed")
    for name in ("whole", "holed"):
        convert(tmp_path / name, tmp_path / f"{name}_out")
    for view, name in enumerate(scene.names):
        normals = np.load(tmp_path / "holed_out" / "normal" / f"{name}.npy")
        np.testing.assert_array_equal(normals[:, holes[view]], 0.5)
        assert (np.abs(normals[:, scene.masks[view] & ~holes[view]] - 0.5).max(axis=0) > 0.1).all()
        whole, holed = (
            np.asarray(Image.open(tmp_path / f"{kind}_out" / "rgb" / f"{name}.png"))[..., 0].astype(float)
            for kind in ("whole", "holed")
        )
        np.testing.assert_array_equal(whole[~holes[view]], holed[~holes[view]])
        assert np.abs(whole - holed)[holes[view]].mean() < 20  # of 210 gray values


def test_meta_data_has_the_world_and_the_scene(sphere_folder: Path, tmp_path: Path):
    meta, arrays = meta_of(convert(sphere_folder, tmp_path / "out")), make_sphere().arguments()
    np.testing.assert_allclose(meta["worldtogt"], arrays["world_from_unit"], atol=1e-6)
    assert Path(meta["pmni_scene"]) == sphere_folder.resolve() and meta["pairs"] is None
    assert (meta["width"], meta["height"]) == (48, 40) and meta["has_mono_prior"] and meta["has_foreground_mask"]
    centers = np.array([frame["camtoworld"] for frame in meta["frames"]])[:, :3, 3]
    distances = np.linalg.norm(centers, axis=-1)
    assert meta["scene_box"]["near"] < distances.min() - 0.9 and meta["scene_box"]["far"] > distances.max() + 0.9


def test_given_poses_replace_those_of_the_scene(sphere_folder: Path, tmp_path: Path):
    scene = read_scene(sphere_folder)
    c2w = scene.c2w.copy()
    c2w[:, :3, :3] = c2w[:, :3, :3] @ Rotation.from_rotvec([0.02, -0.03, 0.01]).as_matrix()
    c2w[:, :3, 3] += [0.1, -0.2, 0.05]
    write_result_cameras(tmp_path, scene, transform_poses(scene.world_from_unit, c2w))
    for file in ("poses.npy", "cameras_refined.npz"):
        meta = meta_of(convert(sphere_folder, tmp_path / "out", poses=tmp_path / file))
        np.testing.assert_allclose([frame["camtoworld"] for frame in meta["frames"]], c2w, atol=1e-7)


def test_a_scene_without_poses_needs_a_poses_file(tmp_path: Path):
    arrays = make_sphere().arguments()
    K = np.broadcast_to(arrays["K"][0], arrays["K"].shape)
    write_scene(tmp_path / "scene", **{**arrays, "c2w": None, "K": K})
    with pytest.raises(PmniError, match="pmni register.*pmni export.*--poses") as error:
        convert(tmp_path / "scene", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    np.save(tmp_path / "poses.npy", transform_poses(np.eye(4), arrays["c2w"]))
    meta = meta_of(convert(tmp_path / "scene", tmp_path / "out", poses=tmp_path / "poses.npy"))
    np.testing.assert_allclose([frame["camtoworld"] for frame in meta["frames"]], arrays["c2w"], atol=1e-9)
    np.save(tmp_path / "poses.npy", arrays["c2w"][:3])
    with pytest.raises(PmniError, match="3 poses"):
        convert(tmp_path / "scene", tmp_path / "out", poses=tmp_path / "poses.npy")


def test_photographs_are_used_if_they_have_the_size_of_the_maps(
    sphere_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    scene, rng = read_scene(sphere_folder), np.random.default_rng(0)
    (sphere_folder / "image").mkdir()
    photographs = rng.integers(1, 255, (7, 40, 48, 3), dtype=np.uint8)
    for name, photograph in zip(scene.names, photographs):
        write_png(sphere_folder / "image" / f"{name}.png", photograph)
    convert(sphere_folder, tmp_path / "out")
    for name, photograph, mask in zip(scene.names, photographs, scene.masks):
        seen = np.asarray(Image.open(tmp_path / "out" / "rgb" / f"{name}.png"))
        np.testing.assert_array_equal(seen, np.where(mask[..., None], photograph, 0))
    assert "Warning" not in capsys.readouterr().err

    write_png(sphere_folder / "image" / "03.png", photographs[3, ::2])
    convert(sphere_folder, tmp_path / "other")
    assert "03.png: is 48x20, the maps are 48x40" in capsys.readouterr().err
    (sphere_folder / "image" / "03.png").unlink()
    write_exr(sphere_folder / "image" / "03.exr", np.ones((40, 48, 3)))
    convert(sphere_folder, tmp_path / "other")
    assert "03.exr: is EXR" in capsys.readouterr().err
    seen = np.asarray(Image.open(tmp_path / "other" / "rgb" / "00.png"))
    assert (seen == seen[..., :1]).all()


def test_normals_can_be_read_without_depth_maps(
    sphere_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.rmtree(sphere_folder / "integration")
    data = stock_dataset(convert(sphere_folder, tmp_path / "out"))[2]
    assert "no depth maps" in capsys.readouterr().err
    assert (data["depth"] == 0).all()
    mask = torch.from_numpy(read_scene(sphere_folder).masks[2])
    torch.testing.assert_close(data["normal"].norm(dim=-1), mask.float())

# SPDX-License-Identifier: Apache-2.0
"""`pmni prepare` on every format, with files written from a scene whose ground truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import trimesh
from helpers.holes import holes_of, scene_with_holes
from helpers.importer_checks import angle_deg, assert_is, assert_maps, data_rays, prepare, shift_px
from helpers.importer_files import (
    NAMES,
    as_colors,
    world_mats,
    write_diligent,
    write_maps,
    write_model,
    write_transforms,
)
from helpers.scenes import AnalyticScene, make_tilted_ellipsoid
from PIL import ExifTags, Image
from scipy.ndimage import binary_erosion

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.data.images import write_exr, write_png
from pmni_nerfstudio.data.instances import read_instances
from pmni_nerfstudio.data.resample import resample_intrinsics, resample_mask
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.export.cameras import write_result_cameras
from pmni_nerfstudio.geometry.transforms import transform_poses

SHARED = Path(__file__).parents[3] / "shared" / "real"


@pytest.fixture(scope="module")
def truth() -> AnalyticScene:
    return make_tilted_ellipsoid()


# ---- plain folders --------------------------------------------------------------------------------------------------


def test_plain_folder_with_a_focal_length(truth: AnalyticScene, tmp_path: Path, capsys):
    write_maps(tmp_path / "src", truth, NAMES)
    scene = prepare(tmp_path / "src", tmp_path / "out", focal=float(truth.K[0, 0, 0]))
    assert scene.c2w is None and scene.names == tuple(NAMES)
    np.testing.assert_allclose(scene.K, truth.K, atol=1e-9)  # the true principal point is the image center
    assert_maps(scene, truth)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'src'}: normal maps without poses, camera from --focal"
    assert lines[1].startswith(
        f"{tmp_path / 'out'}: 8 views of 72x60, normals' axes: camera (decided by the maps), without poses"
    )


def test_plain_folder_with_a_field_of_view(truth: AnalyticScene, tmp_path: Path):
    write_maps(tmp_path / "src", truth, NAMES)
    fov = 2 * np.rad2deg(np.arctan(truth.size[0] / 2 / truth.K[0, 0, 0]))
    np.testing.assert_allclose(prepare(tmp_path / "src", tmp_path / "out", fov=fov).K, truth.K, atol=1e-9)


@pytest.mark.parametrize("way", ["film", "sensor"])
def test_plain_folder_with_exif(truth: AnalyticScene, tmp_path: Path, way: str):
    write_maps(tmp_path / "src", truth, NAMES)
    (tmp_path / "src" / "images").mkdir()
    focal, width = truth.K[0, 0, 0], 144  # the photographs are twice as large as the maps
    for name in NAMES:
        exif = Image.Exif()
        tags = exif.get_ifd(ExifTags.IFD.Exif)
        if way == "film":
            tags[ExifTags.Base.FocalLengthIn35mmFilm] = round(focal / truth.size[0] * 36)
        else:  # an 8 mm wide sensor
            tags[ExifTags.Base.FocalLength] = focal / truth.size[0] * 8
            tags[ExifTags.Base.FocalPlaneXResolution] = width / 0.8
            tags[ExifTags.Base.FocalPlaneResolutionUnit] = 3
            tags[ExifTags.Base.ExifImageWidth] = width
        Image.new("RGB", (width, 120), (90, 80, 70)).save(tmp_path / "src" / "images" / f"{name}.jpg", exif=exif)
    scene = prepare(tmp_path / "src", tmp_path / "out")
    # EXIF stores the 35 mm equivalent focal length in whole millimeters.
    np.testing.assert_allclose(scene.K, truth.K, rtol=0.5 / 200 if way == "film" else 1e-4)
    assert scene.image_files is not None and Image.open(scene.image_files[0]).size == truth.size


@pytest.mark.parametrize("way", ["words", "folders", "words_before"])
def test_plain_files_recognized_by_words_in_their_names(truth: AnalyticScene, tmp_path: Path, way: str):
    (tmp_path / "src").mkdir()
    for view, name in enumerate(NAMES):
        place = {"words": f"{name}_normal", "words_before": f"normal_{name}", "folders": f"{name}/normal_map"}[way]
        file = tmp_path / "src" / f"{place}.png"
        file.parent.mkdir(exist_ok=True)
        write_png(file, as_colors(truth.stored_normals(view, "camera"), truth.masks[view]))
    np.savetxt(tmp_path / "src" / "K.txt", truth.K[0])
    scene = prepare(tmp_path / "src", tmp_path / "out")
    assert scene.names == tuple(NAMES)
    np.testing.assert_allclose(scene.K, truth.K)
    assert_maps(scene, truth)


@pytest.mark.parametrize("axes", ["camera", "opencv", "directx"])
def test_axes_are_estimated_from_the_maps(truth: AnalyticScene, tmp_path: Path, axes: str, capsys):
    write_maps(tmp_path / "src", truth, NAMES, axes)
    assert_maps(prepare(tmp_path / "src", tmp_path / "out", focal=500.0), truth)
    assert f"axes: {axes} (decided" in capsys.readouterr().out


def test_views_of_different_sizes_are_resampled_to_one_size(truth: AnalyticScene, tmp_path: Path):
    write_maps(tmp_path / "src", truth, NAMES)
    large = (108, 90)
    for name, view in ((NAMES[2], 2), (NAMES[5], 5)):
        for kind, pixels in (
            ("normal", as_colors(truth.stored_normals(view, "camera"), truth.masks[view])),
            ("mask", truth.masks[view].astype(np.uint8) * 255),
        ):
            grown = np.kron(pixels, np.ones((3, 3, *[1] * (pixels.ndim - 2)), pixels.dtype))[1::2, 1::2]
            assert grown.shape[1::-1] == large
            write_png(tmp_path / "src" / kind / f"{name}.png", grown)
    (tmp_path / "src" / "intrinsics.json").write_text(
        json.dumps({"fl_x": 300.0, "fl_y": 310.0, "cx": 35.0, "cy": 30.0, "w": 72, "h": 60})
    )
    scene = prepare(tmp_path / "src", tmp_path / "out")
    np.testing.assert_allclose(scene.K, np.repeat([[[300.0, 0, 35], [0, 310, 30], [0, 0, 1]]], 8, axis=0))
    assert (scene.width, scene.height) == truth.size
    assert (scene.masks != truth.masks).sum(axis=(1, 2)).max() < 0.05 * truth.masks[0].sum()
    both = scene.masks & truth.masks
    assert np.median(angle_deg(scene.normals.astype(float), truth.normals)[both]) < 0.5


def test_a_resampled_scene_keeps_its_rays(truth: AnalyticScene, tmp_path: Path):
    """Resampled to half the size and back, rays are unchanged and maps are not shifted."""
    source = write_transforms(tmp_path / "src", truth)
    half = prepare(source, tmp_path / "half", size="36x30")
    np.testing.assert_allclose(half.K, resample_intrinsics(truth.K, truth.size, (36, 30)), atol=1e-6)
    assert half.c2w is not None
    poses = transform_poses(half.world_from_unit, half.c2w)
    rays = data_rays(half.K, poses, (36, 30))[1]
    blocks = data_rays(truth.K, truth.data_c2w, truth.size)[1].reshape(8, 30, 2, 36, 2, 3).mean(axis=(2, 4))
    assert angle_deg(rays, blocks / np.linalg.norm(blocks, axis=-1, keepdims=True)).max() < 1e-3
    for view in range(8):
        np.testing.assert_array_equal(half.masks[view], resample_mask(truth.masks[view], (36, 30)))
    np.testing.assert_allclose(np.linalg.norm(half.normals.astype(float), axis=-1)[half.masks], 1, atol=1e-3)
    assert half.c2w is not None
    half_c2w = transform_poses(half.world_from_unit, half.c2w)
    write_result_cameras(tmp_path / "half", half, half_c2w)  # transforms.json, of normal maps and masks
    back = prepare(tmp_path / "half", tmp_path / "back", size="72x60", format="nerfstudio")
    np.testing.assert_allclose(back.K, truth.K, atol=1e-6)
    both = back.masks & truth.masks
    assert both.sum() > 0.93 * truth.masks.sum()
    inside = both & np.roll(both, 1, 1) & np.roll(both, -1, 1) & np.roll(both, 1, 2) & np.roll(both, -1, 2)
    assert np.abs(shift_px(back.normals, truth.normals, inside)).max() < 0.01


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data is missing")
def test_real_single_view_maps_are_read(tmp_path: Path):
    scene = prepare(SHARED / "diligent_single_view", tmp_path / "out", size="153x128")
    assert scene.names == ("bear", "cat", "cow", "pot2", "reading") and scene.masks[0].mean() > 0.1
    k = np.loadtxt(SHARED / "diligent_single_view" / "bear" / "K.txt")
    np.testing.assert_allclose(scene.K[0], resample_intrinsics(k, (612, 512), (153, 128)))


# ---- transforms.json ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["camera", "opencv", "world"])
def test_transforms(truth: AnalyticScene, tmp_path: Path, axes: str, capsys):
    scene = prepare(write_transforms(tmp_path / "src", truth, axes), tmp_path / "out")
    assert_is(scene, truth, has_sphere=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("src: nerfstudio's transforms.json") and f"axes: {axes} (" in lines[1]


def test_transforms_with_named_maps_and_cameras_of_their_own(truth: AnalyticScene, tmp_path: Path):
    folder = write_transforms(tmp_path / "src", truth)
    meta = json.loads((folder / "transforms.json").read_text())
    (folder / "normals").rename(folder / "estimated")
    (folder / "masks").rename(folder / "cut")
    for frame in meta["frames"]:
        stem = Path(frame["file_path"]).stem
        frame.update(normal_path=f"estimated/{stem}.png", mask_path=f"cut/{stem}.png", w=144, h=120)
        # a camera of images twice as large
        frame.update({key: 2 * meta[key] for key in ("fl_x", "fl_y", "cx", "cy")})
    (folder / "transforms.json").write_text(json.dumps({"frames": meta["frames"]}))
    assert_is(prepare(folder, tmp_path / "out"), truth, has_sphere=False)


def test_blender_transforms_with_masks_from_alpha(truth: AnalyticScene, tmp_path: Path):
    folder = write_transforms(tmp_path / "src", truth, "camera")
    meta = json.loads((folder / "transforms.json").read_text())
    for file in (folder / "masks").iterdir():
        file.unlink()
    (folder / "masks").rmdir()
    (folder / "images").mkdir()
    for frame in meta["frames"]:
        view = int(frame["file_path"][-9:-4]) - 1
        pixels = np.full((*truth.masks[0].shape, 4), 200, np.uint8)
        pixels[..., 3] = 255 * truth.masks[view]
        write_png(folder / frame["file_path"], pixels)
        filled = as_colors(truth.stored_normals(view, "camera"), np.ones_like(truth.masks[view]))
        write_png(folder / "normals" / Path(frame["file_path"]).name, filled)
        frame["file_path"] = "./" + frame["file_path"].removesuffix(".png")
    angle = 2 * np.arctan(truth.size[0] / 2 / truth.K[0, 0, 0])
    (folder / "transforms.json").unlink()
    text = json.dumps({"camera_angle_x": angle, "frames": meta["frames"]})
    (folder / "transforms_train.json").write_text(text)
    scene = prepare(folder, tmp_path / "out")
    assert_is(scene, truth, has_sphere=False)
    assert scene.image_files is not None


def test_transforms_exported_by_pmni(truth: AnalyticScene, tmp_path: Path):
    scene = prepare(write_transforms(tmp_path / "src", truth), tmp_path / "scene")
    assert scene.c2w is not None
    write_result_cameras(tmp_path / "scene", scene, transform_poses(scene.world_from_unit, scene.c2w))
    assert_is(prepare(tmp_path / "scene", tmp_path / "out", format="nerfstudio"), truth, has_sphere=False)


# ---- NeuS, RNb-NeuS, MonoSDF ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cameras_sphere.npz", "cameras.npz"])
def test_neus(truth: AnalyticScene, tmp_path: Path, name: str, capsys):
    write_maps(tmp_path / "src", truth, NAMES, "opencv", "normals")
    (tmp_path / "src" / "image").mkdir()
    for i in NAMES:
        write_png(tmp_path / "src" / "image" / f"{i}.png", np.full((60, 72, 3), 128, np.uint8))
    np.savez(tmp_path / "src" / name, **world_mats(truth))
    scene = prepare(tmp_path / "src", tmp_path / "out")
    assert scene.c2w is not None
    poses = transform_poses(scene.world_from_unit, scene.c2w)
    # single precision in the file
    np.testing.assert_allclose(poses, truth.data_c2w, atol=0.02)
    np.testing.assert_allclose(scene.world_from_unit, truth.world_from_unit, rtol=1e-5)
    assert_maps(scene, truth)
    assert scene.image_files is not None and f"NeuS/IDR cameras, {name}" in capsys.readouterr().out


def test_neus_without_masks_scale_or_some_views(truth: AnalyticScene, tmp_path: Path):
    write_maps(tmp_path / "src", truth, NAMES, "world", "normal_world", None)
    for name in ("000", "005"):
        (tmp_path / "src" / "normal_world" / f"{name}.png").unlink()
    np.savez(
        tmp_path / "src" / "cameras_sphere.npz",
        **{name: array.astype(np.float64) for name, array in world_mats(truth, False).items()},
    )
    scene = prepare(tmp_path / "src", tmp_path / "out")
    kept = [1, 2, 3, 4, 6, 7]
    part = truth.subset(kept)
    assert scene.c2w is not None
    poses = transform_poses(scene.world_from_unit, scene.c2w)
    np.testing.assert_allclose(poses, part.data_c2w, atol=0.02)
    assert_maps(scene, part)
    radius = np.cbrt(np.linalg.det(scene.world_from_unit[:3, :3]))
    assert 0.75 * 55 < radius < 1.25 * 55


@pytest.mark.parametrize("bits", [8, 16])
def test_rnb_neus(truth: AnalyticScene, tmp_path: Path, bits: int, capsys):
    write_maps(tmp_path / "src", truth, NAMES)
    (tmp_path / "src" / "albedo").mkdir()
    for view, name in enumerate(NAMES):
        # read there as value * 2 - 1 with y and z flipped to OpenCV's
        write_png(
            tmp_path / "src" / "normal" / f"{name}.png",
            as_colors(truth.stored_normals(view, "camera"), truth.masks[view], bits),
        )
        write_png(tmp_path / "src" / "albedo" / f"{name}.png", np.full((60, 72, 3), 40000, np.uint16))
    np.savez(tmp_path / "src" / "cameras.npz", **{k: v.astype(np.float64) for k, v in world_mats(truth).items()})
    assert_is(prepare(tmp_path / "src", tmp_path / "out"), truth, 0.6 if bits == 8 else 0.1)
    assert "RNb-NeuS, cameras.npz" in capsys.readouterr().out


def test_monosdf(truth: AnalyticScene, tmp_path: Path, capsys):
    (tmp_path / "src" / "mask").mkdir(parents=True)
    for view, name in enumerate(NAMES):
        stored = np.moveaxis(truth.normals[view] / 2 + 0.5, -1, 0).astype(np.float32)
        np.save(tmp_path / "src" / f"{name}_normal.npy", stored)
        np.save(tmp_path / "src" / f"{name}_depth.npy", np.full((60, 72), 0.5, np.float32))
        write_png(tmp_path / "src" / "mask" / f"{name}.png", truth.masks[view])
    np.savez(tmp_path / "src" / "cameras.npz", **{k: v.astype(np.float64) for k, v in world_mats(truth).items()})
    assert_is(prepare(tmp_path / "src", tmp_path / "out"), truth)
    assert "MonoSDF without its depth maps" in capsys.readouterr().out


# ---- DiLiGenT-MV ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_mat", [True, False])
def test_diligent_mv_one_object(truth: AnalyticScene, tmp_path: Path, has_mat: bool, capsys):
    write_diligent(tmp_path / "bearPNG", truth, has_mat)
    scene = prepare(tmp_path / "bearPNG", tmp_path / "out")
    assert_is(scene, truth, has_sphere=False)
    assert scene.names[0] == "view_01" and scene.mesh_file is not None
    np.testing.assert_allclose(
        scene.world_from_unit,
        np.array([[50 / 0.92, 0, 0, 210], [0, 50 / 0.92, 0, -90], [0, 0, 50 / 0.92, 640], [0, 0, 0, 1]]),
        rtol=1e-4,
    )
    mesh = trimesh.load_mesh(scene.mesh_file)
    np.testing.assert_allclose(mesh.bounds.mean(axis=0), truth.world_from_unit[:3, 3], atol=1e-3)
    assert "DiLiGenT-MV, bear" in capsys.readouterr().out


def test_diligent_mv_all_objects_and_estimated_normals(truth: AnalyticScene, tmp_path: Path):
    for name in ("bear", "cow"):
        write_diligent(tmp_path / "DiLiGenT-MV" / "mvpmsData" / f"{name}PNG", truth)
        for i in range(8):
            file = f"{name}PNG_Normal_TIP19Li_view{i + 1}.mat"
            (tmp_path / "DiLiGenT-MV" / "estNormal").mkdir(exist_ok=True)
            stored = truth.stored_normals(i, "camera") * np.where(truth.masks[i], 1, 0)[..., None]
            scipy.io.savemat(tmp_path / "DiLiGenT-MV" / "estNormal" / file, {"Normal_est": stored})
    main(["prepare", str(tmp_path / "DiLiGenT-MV"), str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bear", "cow"]
    for path in (tmp_path / "DiLiGenT-MV" / "mvpmsData").glob("*/view_*/Normal_gt.mat"):
        path.unlink()
    scene = prepare(tmp_path / "DiLiGenT-MV" / "mvpmsData" / "cowPNG", tmp_path / "est", normals="TIP19Li")
    assert_is(scene, truth, has_sphere=False)
    with pytest.raises(PmniError, match="no Normal_gt.mat"):
        prepare(tmp_path / "DiLiGenT-MV", tmp_path / "none")


# ---- the scene layout itself ----------------------------------------------------------------------------------------


def test_a_scene_folder_is_not_converted(truth: AnalyticScene, tmp_path: Path, capsys):
    prepare(write_transforms(tmp_path / "src", truth), tmp_path / "scene")
    capsys.readouterr()
    main(["prepare", str(tmp_path / "scene"), str(tmp_path / "out")])
    assert "nothing to do" in capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data is missing")
def test_real_dtu_cameras_are_read(tmp_path: Path):
    scene = prepare(SHARED / "dtu_scan24", tmp_path / "out", format="neus", size="64x64")
    arrays = np.load(SHARED / "dtu_scan24" / "cameras_sphere.npz")
    np.testing.assert_allclose(scene.world_from_unit, arrays["scale_mat_0"], rtol=1e-6)
    assert scene.num_views == 49 and scene.c2w is not None
    point = np.array([0.1, -0.2, 0.3, 1.0])
    for view in (0, 30):
        seen = scene.K[view] @ np.linalg.inv(scene.c2w[view])[:3] @ point
        true = (arrays[f"world_mat_{view}"] @ arrays["scale_mat_0"])[:3] @ point
        # from 384 to 64 pixels a side
        np.testing.assert_allclose(seen[:2] / seen[2], (true[:2] / true[2] + 0.5) / 6 - 0.5, atol=1e-3)


def test_exr_and_npy_maps(truth: AnalyticScene, tmp_path: Path):
    folder = tmp_path / "src"
    (folder / "normal").mkdir(parents=True)
    (folder / "mask").mkdir()
    for view, name in enumerate(NAMES):
        stored = truth.stored_normals(view, "camera").astype(np.float32)
        if view % 2:
            np.save(folder / "normal" / f"{name}.npy", stored)
        else:
            write_exr(folder / "normal" / f"{name}.exr", stored)
        write_png(folder / "mask" / f"{name}.png", truth.masks[view])
    assert_maps(prepare(folder, tmp_path / "out", focal=300.0), truth, 0.05)


# ---- holes ----------------------------------------------------------------------------------------------------------


def write_colmap(folder: Path, truth: AnalyticScene) -> None:
    write_model(folder / "sparse" / "0", truth, ".txt", [f"{name}.jpg" for name in NAMES])
    write_maps(folder, truth, NAMES)


def write_neus(folder: Path, truth: AnalyticScene) -> None:
    write_maps(folder, truth, NAMES, "opencv")
    np.savez(folder / "cameras_sphere.npz", **world_mats(truth))


def write_plain(folder: Path, truth: AnalyticScene) -> None:
    write_maps(folder, truth, NAMES)
    np.savetxt(folder / "K.txt", truth.K[0])


HOLED_FORMATS = {
    "plain": (write_plain, NAMES),
    "neus": (write_neus, NAMES),
    "colmap": (write_colmap, NAMES),
    "nerfstudio": (write_transforms, [f"frame_{i + 1:05d}" for i in range(8)]),
    "diligent-mv": (write_diligent, [f"view_{i + 1:02d}" for i in range(8)]),
}


@pytest.mark.parametrize("way", ["zero", "mask_valid"])
@pytest.mark.parametrize("name", HOLED_FORMATS)
def test_holes_are_kept(truth: AnalyticScene, tmp_path: Path, name: str, way: str, capsys):
    write, views = HOLED_FORMATS[name]
    holed = scene_with_holes(truth)
    write(tmp_path / "src", holed if way == "zero" else truth)
    expected = holed.normals.any(axis=-1)
    if way == "mask_valid":
        (tmp_path / "src" / "mask_valid").mkdir()
        for view, valid in zip(views, expected):
            write_png(tmp_path / "src" / "mask_valid" / f"{view}.png", valid)
    scene = prepare(tmp_path / "src", tmp_path / "out", format=name)
    np.testing.assert_array_equal(scene.masks, truth.masks)
    np.testing.assert_array_equal(scene.valid, expected)
    assert angle_deg(scene.normals.astype(np.float64), truth.normals)[expected].max() < 0.1
    assert (tmp_path / "out" / "mask_valid").is_dir()
    assert "which count for the silhouette only" in capsys.readouterr().err.replace("\n", " ")


def test_holes_are_resampled(truth: AnalyticScene, tmp_path: Path):
    write_plain(tmp_path / "src", scene_with_holes(truth))
    whole = prepare(tmp_path / "src", tmp_path / "whole")
    half = prepare(tmp_path / "src", tmp_path / "half", size="36x30")
    assert half.valid.sum() / half.masks.sum() == pytest.approx(whole.valid.sum() / whole.masks.sum(), abs=0.03)
    np.testing.assert_array_equal(half.masks[0], resample_mask(truth.masks[0], (36, 30)))


@pytest.mark.parametrize("size", [None, "36x30"])
def test_unknown_pixels_and_labels_are_carried_over(truth: AnalyticScene, tmp_path: Path, size: str | None):
    """Hands in front of an object of two parts; at half of the size, labels are those of the source's pixels."""
    write_maps(tmp_path / "src", truth, NAMES)
    unknown, labels = np.zeros_like(truth.masks), np.zeros(truth.masks.shape, np.uint8)
    unknown[:, :20, 30:40] = True
    labels[:, :, :36], labels[:, :, 36:] = 1, 7
    labels[~truth.masks] = 0
    for folder, images in (("mask_unknown", unknown & ~truth.masks), ("instance", labels)):
        (tmp_path / "src" / folder).mkdir()
        for name, image in zip(NAMES, images):
            write_png(tmp_path / "src" / folder / f"{name}.png", image)
    scene = prepare(tmp_path / "src", tmp_path / "out", focal=float(truth.K[0, 0, 0]), size=size)
    found, warnings = read_instances(scene)
    assert scene.unknown is not None
    if size is None:
        assert warnings == []
        np.testing.assert_array_equal(scene.unknown, unknown & ~truth.masks)
        np.testing.assert_array_equal(found, labels)
    else:
        assert set(np.unique(found)) == {0, 1, 7} and (found[:, :, :18] != 7).all() and (found[:, :, 18:] != 1).all()
        inner = binary_erosion(scene.masks, np.ones((1, 3, 3)))
        assert (found[inner] > 0).all()
        assert abs(scene.unknown.mean() - (unknown & ~truth.masks).mean()) < 0.01


def test_validity_is_recognized_by_words_and_required_for_all_views(truth: AnalyticScene, tmp_path: Path):
    holes = holes_of(truth.masks)
    (tmp_path / "src").mkdir()
    for view, name in enumerate(NAMES):
        file = str(tmp_path / "src" / name)
        write_png(Path(f"{file}_normal.png"), as_colors(truth.stored_normals(view, "camera"), truth.masks[view]))
        write_png(Path(f"{file}_mask.png"), truth.masks[view])
        write_png(Path(f"{file}_mask_valid.png"), ~holes[view])
    scene = prepare(tmp_path / "src", tmp_path / "out", focal=500.0)
    np.testing.assert_array_equal(scene.masks, truth.masks)
    np.testing.assert_array_equal(scene.valid, truth.masks & ~holes)
    (tmp_path / "src" / f"{NAMES[3]}_mask_valid.png").unlink()
    with pytest.raises(PmniError, match=f"has no image of the view {NAMES[3]}"):
        prepare(tmp_path / "src", tmp_path / "again", focal=500.0)

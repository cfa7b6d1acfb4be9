# SPDX-License-Identifier: Apache-2.0
"""`pmni asset` with images under known lights: the glTF's material, its base color, the relit picture, and errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.gltf import Glb
from helpers.photometric import GltfMaterial, body_mesh, make_capture
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from pmni_nerfstudio import cli
from pmni_nerfstudio.export.gltf import GltfLevel, GltfMesh, Reflectance, encoded_image, write_glb
from pmni_nerfstudio.export.gltf import GltfMaterial as GltfMaterialFile
from pmni_nerfstudio.material import appearance, estimate
from pmni_nerfstudio.material.lit_views import LitView, Surface

MATERIAL = GltfMaterial((0.5, 0.35, 0.2), roughness=0.35)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture, the scene that pmni photometric makes of it, and the true mesh and poses."""
    root = tmp_path_factory.mktemp("asset_material")
    capture = make_capture(12, MATERIAL, num_views=5, width=96, height=80)
    (root / "capture").mkdir()
    cli.main(["photometric", str(capture.write_json(root / "capture", light_axes="camera")), str(root / "scene")])
    body_mesh(capture.truth).export(root / "mesh.ply")
    np.save(root / "poses.npy", capture.truth.data_c2w)
    return root


def asset(folder: Path, *options: str, faces: str = "1000") -> Path:
    out = folder / "asset"
    shutil.rmtree(out, ignore_errors=True)
    places = ["--data", str(folder / "scene"), "--poses", str(folder / "poses.npy"), "--texture-size", "128"]
    cli.main(["asset", str(folder / "mesh.ply"), str(out), *places, "--faces", faces, "--no-occlusion", *options])
    return out


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(views: Sequence[LitView], surface: Surface) -> estimate.Material:
        return estimate.estimate_material(views, surface, 15_000)

    monkeypatch.setattr(appearance, "estimate_material", quick)


def test_the_material_is_written_and_a_held_out_view_is_relit(folder: Path, capsys: pytest.CaptureFixture):
    out = asset(folder)
    shown = capsys.readouterr().out
    glb = Glb(out / "mesh_1000.glb")
    pbr = glb.material["pbrMetallicRoughness"]
    assert pbr["metallicFactor"] == 0 and abs(pbr["roughnessFactor"] - 0.35) < 0.02
    assert "extensionsUsed" not in glb.tree  # the specular factor is one
    texture, covered = glb.texture(pbr, "baseColorTexture"), Image.open(out / "mesh_1000_unseen.png").convert("L")
    found = texture[np.asarray(covered) == 0]
    srgb = 1.055 * np.array(MATERIAL.albedo) ** (1 / 2.4) - 0.055
    error = deltaE_ciede2000(rgb2lab(found / 255), np.broadcast_to(rgb2lab(srgb), found.shape))
    assert error.mean() < 2.5
    record = json.loads((out / "asset.json").read_text())
    material = record["material"]
    assert record["base_color"] == "lights" and material["is_measured"] and material["doubt"] is None
    assert material["roughness"] == pbr["roughnessFactor"] and material["capture"] == str(folder / "capture")
    assert material["held_out"]["view"] == "view_03" and material["held_out"]["psnr_db"] > 27
    picture = np.asarray(Image.open(out / "relit.png"))
    assert picture.shape[1] % 3 == 0
    assert "roughness 0.3" in shown and "view view_03, held out, relit with" in shown


def test_other_colors_leave_the_material_alone(folder: Path, capsys: pytest.CaptureFixture):
    out = asset(folder, "--color", "albedo", faces="500")
    assert Glb(out / "mesh_500.glb").material["pbrMetallicRoughness"]["roughnessFactor"] == 0.8
    record = json.loads((out / "asset.json").read_text())
    assert record["material"] is None and record["base_color"] == "albedo" and not (out / "relit.png").exists()


def test_a_capture_that_moved_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    summary = moved / "scene" / "photometric_result.json"
    record = json.loads(summary.read_text())
    summary.write_text(json.dumps(record | {"capture": str(tmp_path / "gone")}))
    out = asset(moved, faces="500")
    assert "gone does not exist any more; --lights says where it is now" in capsys.readouterr().out
    assert json.loads((out / "asset.json").read_text())["base_color"] == "albedo"
    for options, line in (
        (["--color", "lights"], "gone does not exist any more"),
        (["--lights", str(tmp_path / "nowhere")], "nowhere: does not exist"),
        (["--lights", str(moved / "capture"), "--color", "image"], "has no use with --color image"),
    ):
        with pytest.raises(SystemExit) as end:
            asset(moved, *options, faces="500")
        assert end.value.code == 1
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1 and line in error[0]
    summary.write_text(json.dumps(record | {"light_axes": "sideways"}))
    with pytest.raises(SystemExit):
        asset(moved, faces="500")
    assert "photometric_result.json: light_axes or gamma is not what" in capsys.readouterr().err


def test_unusable_captures_end_the_command_without_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "empty").mkdir()
    others = tmp_path / "others"
    shutil.copytree(folder / "capture", others)
    record = json.loads((others / "photometric.json").read_text())
    (others / "photometric.json").write_text(json.dumps(record | {"views": record["views"][:-1]}))
    for lights, line in (
        (tmp_path / "empty", "holds no images with known lights"),
        (others, "its views are not those of the images under known lights"),
    ):
        with pytest.raises(SystemExit) as end:
            asset(folder, "--lights", str(lights))
        assert end.value.code == 1
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1 and line in error[0]
        assert not (folder / "asset").exists()


@pytest.mark.parametrize("specular", [1.0, 0.4])
def test_specular_factors_need_an_extension(tmp_path: Path, specular: float):
    triangle = np.eye(3)
    normals = np.full((3, 3), 3**-0.5)
    tangents = np.column_stack([np.tile([2**-0.5, -(2**-0.5), 0], (3, 1)), np.ones(3)])
    mesh = GltfMesh(triangle, normals, tangents, triangle[:, :2], np.array([[0, 1, 2]]))
    image = encoded_image(np.full((4, 4, 3), 128, np.uint8))
    material = GltfMaterialFile(image, reflectance=Reflectance(0.3, 0.0, specular))
    write_glb(tmp_path / "a.glb", [GltfLevel("a", mesh, material)], {})
    glb = Glb(tmp_path / "a.glb")
    assert glb.material["pbrMetallicRoughness"]["roughnessFactor"] == 0.3
    if specular == 1:
        assert "extensions" not in glb.material and "extensionsUsed" not in glb.tree
    else:
        assert glb.material["extensions"] == {"KHR_materials_specular": {"specularFactor": specular}}
        assert glb.tree["extensionsUsed"] == ["KHR_materials_specular"]

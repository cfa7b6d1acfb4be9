# SPDX-License-Identifier: Apache-2.0
"""`pmni prepare`: distortion, COLMAP and Metashape, on a sphere, whose normals are known along any ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.distorted_sphere import LENSES, NAMES, OPENGL, SIZE, WORLD, K, poses, write_distorted, write_metashape
from helpers.importer_checks import assert_is, data_rays, prepare, shift_px
from helpers.importer_files import write_maps, write_model
from helpers.scenes import hit_sphere, make_tilted_ellipsoid, render_maps

from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.importers import assemble
from pmni_nerfstudio.importers import view_maps as maps


def assert_is_the_straight_sphere(scene: Scene, worst_deg: float = 0.2) -> None:
    masks, normals, _ = render_maps(hit_sphere, np.repeat(K[None], 6, axis=0), poses(), *SIZE)
    # of an outline of 190 pixels, each within .5 of its place; as a whole they neither grow nor shrink
    np.testing.assert_allclose(scene.masks.sum(axis=(1, 2)), masks.sum(axis=(1, 2)), rtol=0.01)
    assert (scene.masks ^ masks).sum(axis=(1, 2)).max() < 100
    assert scene.c2w is not None
    made = transform_poses(scene.world_from_unit, scene.c2w)
    for mine, true in zip(data_rays(scene.K, made, SIZE), data_rays(np.repeat(K[None], 6, axis=0), poses(), SIZE)):
        np.testing.assert_allclose(mine, true, atol=1e-6)
    both = scene.masks & masks & (normals[..., 2] < -0.5)
    assert np.abs(shift_px(scene.normals, normals, both)).max() < 0.02
    both &= normals[..., 2] < -0.7  # nearer the rim interpolation bends normals
    apart = np.linalg.norm(scene.normals.astype(float) - normals, axis=-1)[both]
    assert np.rad2deg(apart.max()) < worst_deg


@pytest.mark.parametrize("name", LENSES)
def test_distortion_goes(name: str, tmp_path: Path):
    model, coefficients = LENSES[name]
    write_distorted(tmp_path / "src", (model, coefficients))
    keys = ("k1", "k2", "k3", "k4") if model == "OPENCV_FISHEYE" else ("k1", "k2", "p1", "p2")
    meta = {"camera_model": model, "w": SIZE[0], "h": SIZE[1], "fl_x": 150.0, "fl_y": 152.0, "cx": 65.7, "cy": 50.6}
    meta |= dict(zip(keys, coefficients))
    meta["frames"] = [
        {"file_path": f"images/{name}.png", "transform_matrix": (pose @ OPENGL).tolist()}
        for name, pose in zip(NAMES, poses())
    ]
    (tmp_path / "src" / "transforms.json").write_text(json.dumps(meta))
    assert_is_the_straight_sphere(prepare(tmp_path / "src", tmp_path / "out"))
    for key in keys:
        meta[key] = 0.0
    meta["camera_model"] = "OPENCV"
    (tmp_path / "src" / "transforms.json").write_text(json.dumps(meta))
    with pytest.raises(AssertionError):  # what of the distortion is left would be seen
        assert_is_the_straight_sphere(prepare(tmp_path / "src", tmp_path / "bent"))


def write_straight(folder: Path) -> None:
    """transforms.json of the sphere without distortion."""
    write_distorted(folder, ("OPENCV", [0.0] * 4))
    meta = {"w": SIZE[0], "h": SIZE[1], "fl_x": 150.0, "fl_y": 152.0, "cx": 65.7, "cy": 50.6}
    frames = [
        {"file_path": f"{n}.png", "transform_matrix": (pose @ OPENGL).tolist()} for n, pose in zip(NAMES, poses())
    ]
    (folder / "transforms.json").write_text(json.dumps({**meta, "frames": frames}))


def shift_of(scene: Scene) -> float:
    """In pixels, the larger of x and y, of the sphere's normals beside those that the scene's own cameras would see."""
    masks, normals, _ = render_maps(hit_sphere, scene.K, poses(), scene.width, scene.height)
    return float(np.abs(shift_px(scene.normals, normals, scene.masks & masks & (normals[..., 2] < -0.5))).max())


@pytest.mark.parametrize("size", ["64x52", "88x72", "192x156"])
def test_at_another_size_normals_lie_where_the_cameras_see_them(size: str, tmp_path: Path, monkeypatch):
    """And were half a pixel forgotten in the intrinsics, it would be seen."""
    write_straight(tmp_path / "src")
    assert shift_of(prepare(tmp_path / "src", tmp_path / "right", size=size)) < 0.02

    def without_half_pixels(K: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
        return np.diag([new[0] / old[0], new[1] / old[1], 1]) @ K

    with monkeypatch.context() as patch:
        patch.setattr(assemble, "resample_intrinsics", without_half_pixels)
        forgotten = shift_of(prepare(tmp_path / "src", tmp_path / "intrinsics", size=size))
    assert forgotten > 0.1  # .25, .16 and .25 of a pixel, of which the coarse ones' gradients show three quarters


def test_half_a_pixel_of_undistortion_would_be_seen(tmp_path: Path, monkeypatch):
    write_straight(tmp_path / "src")
    places = maps._undistortion_map
    monkeypatch.setattr(
        maps, "_undistortion_map", lambda *given: tuple(place + np.float32(0.5) for place in places(*given))
    )
    meta = json.loads((tmp_path / "src" / "transforms.json").read_text()) | {"k1": 1e-9}
    (tmp_path / "src" / "transforms.json").write_text(json.dumps(meta))
    assert shift_of(prepare(tmp_path / "src", tmp_path / "out")) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
def test_colmap(suffix: str, tmp_path: Path, capsys):
    truth = make_tilted_ellipsoid()
    names = [f"view{i}" for i in range(8)]
    write_maps(tmp_path / "src", truth, names)
    write_model(tmp_path / "src" / "sparse" / "0", truth, suffix, [f"{name}.jpg" for name in names])
    scene = prepare(tmp_path / "src", tmp_path / "out")
    assert_is(scene, truth, has_sphere=False)
    assert scene.names == tuple(names)
    assert f"COLMAP model in sparse/0 ({suffix[1:]})" in capsys.readouterr().out


def test_images_without_a_normal_map_are_left_out_and_said(tmp_path: Path, capsys):
    truth = make_tilted_ellipsoid()
    names = [f"a/view{i}.jpg" for i in range(8)]
    write_maps(tmp_path / "src", truth, [f"view{i}" for i in range(8)])
    write_model(tmp_path / "src", truth, ".bin", names)
    (tmp_path / "src" / "normal" / "view4.png").unlink()
    scene = prepare(tmp_path / "src", tmp_path / "out")
    assert scene.names == tuple(f"view{i}" for i in range(8) if i != 4)
    assert "1 images (first view4) have no normal map" in " ".join(capsys.readouterr().err.split())
    for file in (tmp_path / "src" / "normal").iterdir():
        file.rename(file.with_name(f"other{file.name}"))
    with pytest.raises(PmniError, match="name them alike"):
        prepare(tmp_path / "src", tmp_path / "none")


@pytest.mark.parametrize("name", ["9" * 5000, "a\x07b"], ids=["too long", "not printable"])
def test_a_name_that_no_file_has_is_a_view_without_maps(name: str, tmp_path: Path, capsys):
    write_maps(tmp_path / "src", make_tilted_ellipsoid(), [f"v{i}" for i in range(8)])
    write_model(tmp_path / "src", make_tilted_ellipsoid(), ".bin", [name, *(f"v{i}.jpg" for i in range(1, 8))])
    assert prepare(tmp_path / "src", tmp_path / "out").num_views == 7
    assert "1 images (first" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "junk", "model"])
def test_a_broken_model_is_named(damage: str, tmp_path: Path):
    truth = make_tilted_ellipsoid()
    write_maps(tmp_path / "src", truth, [f"v{i}" for i in range(8)])
    write_model(tmp_path / "src", truth, ".bin", [f"v{i}.jpg" for i in range(8)])
    file = tmp_path / "src" / "cameras.bin"
    data = bytearray(file.read_bytes())
    data[12:16] = {"model": b"\x09\x00\x00\x00", "junk": b"\xff\xff\xff\x7f"}.get(damage, data[12:16])
    file.write_bytes(data[:20] if damage == "cut" else data)
    with pytest.raises(PmniError, match="cameras.bin|model can't be read") as error:
        prepare(tmp_path / "src", tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("element", ["{}", '<components><component id="0">{}</component></components>'])
def test_metashape_in_the_world_of_its_scale_bars(tmp_path: Path, element: str, capsys):
    write_distorted(tmp_path / "src", LENSES["tangential"])
    cameras, lens = tmp_path / "src" / "cameras.xml", {"k1": 0.05, "p1": -0.03, "p2": 0.02}
    turned = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    for shift, kept in (("3 -2 1", [3.0, -2, 1]), ("4000000 300 0.5", [0.0, 0, 0])):
        write_metashape(cameras, lens, element.format(WORLD.format(shift)))
        scene = prepare(tmp_path / "src", tmp_path / f"out{kept[0]}")
        assert scene.c2w is not None
        found = transform_poses(scene.world_from_unit, scene.c2w)
        np.testing.assert_allclose(found[:, :3, 3], 0.25 * poses()[:, :3, 3] @ turned.T + kept, atol=1e-5)
        np.testing.assert_allclose(found[:, :3, :3], turned @ poses()[:, :3, :3], atol=1e-6)
        said = capsys.readouterr()
        assert ("(4000000.000, 300.000, 0.500) was subtracted" in said.out + said.err) == (kept[0] == 0)
    write_metashape(cameras, lens, element.format(WORLD.format("0 0 0").replace("0.25", "-1")))
    with pytest.raises(PmniError, match="not a rotation, translation and scale"):
        prepare(tmp_path / "src", tmp_path / "none")


def test_metashape(tmp_path: Path, capsys):
    """Its P1 is OpenCV's p2 and the other way round (Metashape's manual, appendix on camera models)."""
    write_distorted(tmp_path / "src", LENSES["tangential"])
    write_metashape(tmp_path / "src" / "cameras.xml", {"k1": 0.05, "p1": -0.03, "p2": 0.02})
    assert_is_the_straight_sphere(prepare(tmp_path / "src", tmp_path / "out"))
    assert "Metashape's cameras.xml" in capsys.readouterr().out
    write_metashape(tmp_path / "src" / "cameras.xml", {"k1": 0.05, "p1": 0.02, "p2": -0.03})
    with pytest.raises(AssertionError):
        assert_is_the_straight_sphere(prepare(tmp_path / "src", tmp_path / "bent"))
    write_metashape(tmp_path / "src" / "cameras.xml", {"k4": 0.05})
    with pytest.raises(PmniError, match="undistort"):
        prepare(tmp_path / "src", tmp_path / "none")
    text = (tmp_path / "src" / "cameras.xml").read_text()
    (tmp_path / "src" / "cameras.xml").write_text(text.replace('width="128"', 'width="0"'))
    with pytest.raises(PmniError, match="has no pixels"):
        prepare(tmp_path / "src", tmp_path / "none")
    (tmp_path / "src" / "cameras.xml").write_text("<document><chunk>")
    with pytest.raises(PmniError, match="can't be read as Metashape"):
        prepare(tmp_path / "src", tmp_path / "none")

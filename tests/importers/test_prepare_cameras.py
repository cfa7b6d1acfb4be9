# SPDX-License-Identifier: Apache-2.0
"""`pmni prepare`: lens distortion, COLMAP and Metashape, on a sphere, whose normals are known for any ray."""

from __future__ import annotations

import json
import shutil
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
from pmni_nerfstudio.importers.registry import FORMATS
from pmni_nerfstudio.importers.source import ImportOptions


def assert_is_undistorted_sphere(scene: Scene, worst_deg: float = 0.2) -> None:
    masks, normals, _ = render_maps(hit_sphere, np.repeat(K[None], 6, axis=0), poses(), *SIZE)
    # The contour has 190 pixels, each correct within half a pixel; the area is unchanged.
    np.testing.assert_allclose(scene.masks.sum(axis=(1, 2)), masks.sum(axis=(1, 2)), rtol=0.01)
    assert (scene.masks ^ masks).sum(axis=(1, 2)).max() < 100
    assert scene.c2w is not None
    made = transform_poses(scene.world_from_unit, scene.c2w)
    for mine, true in zip(data_rays(scene.K, made, SIZE), data_rays(np.repeat(K[None], 6, axis=0), poses(), SIZE)):
        np.testing.assert_allclose(mine, true, atol=1e-6)
    both = scene.masks & masks & (normals[..., 2] < -0.5)
    assert np.abs(shift_px(scene.normals, normals, both)).max() < 0.02
    both &= normals[..., 2] < -0.7  # near the silhouette, interpolation changes normals
    apart = np.linalg.norm(scene.normals.astype(float) - normals, axis=-1)[both]
    assert np.rad2deg(apart.max()) < worst_deg


@pytest.mark.parametrize("name", LENSES)
def test_distortion_is_removed(name: str, tmp_path: Path):
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
    assert_is_undistorted_sphere(prepare(tmp_path / "src", tmp_path / "out"))
    for key in keys:
        meta[key] = 0.0
    meta["camera_model"] = "OPENCV"
    (tmp_path / "src" / "transforms.json").write_text(json.dumps(meta))
    with pytest.raises(AssertionError):  # the test detects distortion that is not removed
        assert_is_undistorted_sphere(prepare(tmp_path / "src", tmp_path / "bent"))


def write_undistorted(folder: Path) -> None:
    """transforms.json of the sphere without distortion."""
    write_distorted(folder, ("OPENCV", [0.0] * 4))
    meta = {"w": SIZE[0], "h": SIZE[1], "fl_x": 150.0, "fl_y": 152.0, "cx": 65.7, "cy": 50.6}
    frames = [
        {"file_path": f"{n}.png", "transform_matrix": (pose @ OPENGL).tolist()} for n, pose in zip(NAMES, poses())
    ]
    (folder / "transforms.json").write_text(json.dumps({**meta, "frames": frames}))


def shift_of(scene: Scene) -> float:
    """Shift of the normal maps from those of a sphere seen by the scene's cameras, in pixels, the larger of x and y."""
    masks, normals, _ = render_maps(hit_sphere, scene.K, poses(), scene.width, scene.height)
    return float(np.abs(shift_px(scene.normals, normals, scene.masks & masks & (normals[..., 2] < -0.5))).max())


@pytest.mark.parametrize("size", ["64x52", "88x72", "192x156"])
def test_resampled_normals_match_the_resampled_intrinsics(size: str, tmp_path: Path, monkeypatch):
    """The test detects intrinsics that ignore that pixel centers are at integers."""
    write_undistorted(tmp_path / "src")
    assert shift_of(prepare(tmp_path / "src", tmp_path / "right", size=size)) < 0.02

    def without_half_pixels(K: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
        return np.diag([new[0] / old[0], new[1] / old[1], 1]) @ K

    with monkeypatch.context() as patch:
        patch.setattr(assemble, "resample_intrinsics", without_half_pixels)
        forgotten = shift_of(prepare(tmp_path / "src", tmp_path / "intrinsics", size=size))
    assert forgotten > 0.1  # expected: 0.25, 0.16 and 0.25 pixels, of which coarse gradients show three quarters


def test_a_shift_by_half_a_pixel_in_undistortion_is_detected(tmp_path: Path, monkeypatch):
    write_undistorted(tmp_path / "src")
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


def test_images_without_a_normal_map_are_left_out_with_a_warning(tmp_path: Path, capsys):
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
def test_an_image_name_that_is_no_valid_file_name_has_no_maps(name: str, tmp_path: Path, capsys):
    write_maps(tmp_path / "src", make_tilted_ellipsoid(), [f"v{i}" for i in range(8)])
    write_model(tmp_path / "src", make_tilted_ellipsoid(), ".bin", [name, *(f"v{i}.jpg" for i in range(1, 8))])
    assert prepare(tmp_path / "src", tmp_path / "out").num_views == 7
    assert "1 images (first" in capsys.readouterr().err


COLMAP_4_2 = Path(__file__).with_name("colmap_4.2")
"""A model with a rig, written by pycolmap 4.2.1."""
W2C = {
    "a view": [
        [0.9770428349739145, -0.2005406358027557, 0.07190794127189702, 0],
        [-0.2005406358027557, -0.7518080548045334, 0.628146561021273, 0],
        [-0.07190794127189702, -0.628146561021273, -0.774765219830619, 5],
    ],
    "camera000001_frame000001": [
        [0.7350549043585315, -0.029125713830596967, -0.6773817095053041, 0],
        [-0.029125713830596967, 0.9967981773578863, -0.07446533696864585, 0],
        [0.6773817095053041, 0.07446533696864585, 0.7318530817164179, 5],
    ],
    "camera000002_frame000000": [
        [0.9919973711308162, -0.1258638569395204, 0.009975228611800484, 0.07071885902164554],
        [-0.10378084433838046, -0.7678477631623708, 0.6321703480510269, 0.021418670057975746],
        [-0.071907941271897, -0.6281465610212728, -0.7747652198306179, 5.061030405761625],
    ],
    "camera000002_frame000001": [
        [0.7343690527208865, -0.12671588298598285, -0.6668172008916016, 0.07071885902164514],
        [0.04308264190482623, 0.9891400298184422, -0.14052006040872522, 0.021418670057973016],
        [0.6773817095053043, 0.07446533696864586, 0.7318530817164177, 5.06103040576162],
    ],
}
"""World-to-camera poses of its images as pycolmap reads them."""


def copy_colmap_4_2(folder: Path, suffix: str) -> None:
    """Copy the model, with empty files as normal maps."""
    (folder / "normal").mkdir(parents=True)
    for file in COLMAP_4_2.glob(f"*{suffix}"):
        shutil.copy(file, folder)
    for name in ("a view", "camera000001_frame000001", "camera000002_frame000000", "camera000002_frame000001"):
        (folder / "normal" / f"{name}.exr").touch()


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
def test_colmap_4_with_a_rig(suffix: str, tmp_path: Path):
    """Poses are those that pycolmap reads from the model."""
    copy_colmap_4_2(tmp_path, suffix)
    frames = FORMATS["colmap"].read(tmp_path, ImportOptions()).frames
    assert [frame.name for frame in frames] == list(W2C)
    for frame in frames:
        assert frame.c2w is not None and frame.size == (1024, 768)
        np.testing.assert_allclose(np.linalg.inv(frame.c2w)[:3], W2C[frame.name], atol=1e-12)
        radial = frame.name in ("a view", "camera000001_frame000001")
        np.testing.assert_allclose(np.diag(frame.K), [1280, 1280, 1] if radial else [1200, 1210, 1])
        np.testing.assert_allclose(frame.K[:2, 2], [511.5, 383.5] if radial else [510.5, 384.5])
        assert frame.lens.is_fisheye != radial and frame.lens.coefficients[0] == (0.05 if radial else 0)


def test_a_truncated_colmap_file_is_reported(tmp_path: Path):
    copy_colmap_4_2(tmp_path, ".bin")
    for name in ("cameras.bin", "images.bin"):
        whole = (tmp_path / name).read_bytes()
        for size in range(0, len(whole), 11):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(PmniError, match="model can't be read"):
                FORMATS["colmap"].read(tmp_path, ImportOptions())
        (tmp_path / name).write_bytes(whole)


@pytest.mark.parametrize("damage", ["cut", "junk", "model"])
def test_a_broken_colmap_model_is_reported(damage: str, tmp_path: Path):
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
        output = capsys.readouterr()
        assert ("(4000000.000, 300.000, 0.500) was subtracted" in output.out + output.err) == (kept[0] == 0)
    write_metashape(cameras, lens, element.format(WORLD.format("0 0 0").replace("0.25", "-1")))
    with pytest.raises(PmniError, match="not a rotation, translation and scale"):
        prepare(tmp_path / "src", tmp_path / "none")


def test_metashape(tmp_path: Path, capsys):
    """Metashape's p1 and p2 are OpenCV's p2 and p1 (Metashape's manual, appendix on camera models)."""
    write_distorted(tmp_path / "src", LENSES["tangential"])
    write_metashape(tmp_path / "src" / "cameras.xml", {"k1": 0.05, "p1": -0.03, "p2": 0.02})
    assert_is_undistorted_sphere(prepare(tmp_path / "src", tmp_path / "out"))
    assert "Metashape's cameras.xml" in capsys.readouterr().out
    write_metashape(tmp_path / "src" / "cameras.xml", {"k1": 0.05, "p1": 0.02, "p2": -0.03})
    with pytest.raises(AssertionError):
        assert_is_undistorted_sphere(prepare(tmp_path / "src", tmp_path / "bent"))
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


def with_calibrations(folder: Path, *kinds: str) -> None:
    """Replace the calibration of write_metashape by several; an initial one has a focal length 15% too large."""
    file = folder / "cameras.xml"
    head, rest = file.read_text().split("<calibration", 1)
    body, tail = rest.split("</calibration>", 1)
    parts = []
    for kind in kinds:
        wrong = body.replace("<f>152.0</f>", "<f>174.8</f>") if kind == "initial" else body
        parts.append(f'<calibration class="{kind}"{wrong}</calibration>')
    file.write_text(head + "".join(parts) + tail)


@pytest.mark.parametrize("kinds", [("initial", "adjusted"), ("adjusted", "initial"), ("initial",)])
def test_metashape_calibrations(kinds: tuple[str, ...], tmp_path: Path):
    write_distorted(tmp_path, LENSES["tangential"])
    write_metashape(tmp_path / "cameras.xml", {"k1": 0.05, "p1": -0.03, "p2": 0.02})
    with_calibrations(tmp_path, *kinds)
    source = FORMATS["metashape"].read(tmp_path, ImportOptions())
    is_adjusted = "adjusted" in kinds
    assert {frame.K[1, 1] for frame in source.frames} == {152.0 if is_adjusted else 174.8}
    assert any("only an initial calibration" in line for line in source.warnings) != is_adjusted


def test_metashape_names_chunks_and_files_that_are_not_read(tmp_path: Path):
    write_distorted(tmp_path, LENSES["tangential"])
    write_metashape(tmp_path / "cameras.xml", {})
    text = (tmp_path / "cameras.xml").read_text()
    (tmp_path / "other.xml").write_text(text)
    (tmp_path / "cameras.xml").write_bytes(
        text.replace("</chunk>", "</chunk><chunk/>").replace('1.0"?>', '1.0" encoding="UTF-16"?>').encode("utf-16")
    )
    warnings = " ".join(FORMATS["metashape"].read(tmp_path, ImportOptions()).warnings)
    assert "holds 2 chunks" in warnings and "not other.xml" in warnings

# SPDX-License-Identifier: Apache-2.0
"""`pmni prepare` on broken input: one line names the fault, no partial scene remains, existing files are kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from helpers.importer_checks import prepare
from helpers.importer_files import NAMES, world_mats, write_diligent, write_maps, write_transforms
from helpers.scenes import AnalyticScene, make_tilted_ellipsoid

from pmni_nerfstudio.data.images import read_mask, write_png
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.importers.matlab import read_mat

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def truth() -> AnalyticScene:
    return make_tilted_ellipsoid()


def edit(file: Path, change: Callable[[dict], object]) -> None:
    meta = json.loads(file.read_text())
    change(meta)
    file.write_text(json.dumps(meta))


def invert(file: Path) -> None:
    write_png(file, ~read_mask(file))


def in_transforms(change: Callable[[dict], object]) -> Damage:
    return lambda folder: edit(folder / "transforms.json", change)


def frame(key: str, value: object) -> Damage:
    return in_transforms(lambda meta: meta["frames"][2].update({key: value}))


MIRRORED = np.diag([1.0, -1, 1, 1]).tolist()
TRANSFORMS: dict[str, tuple[Damage, str]] = {
    "no JSON": (lambda f: (f / "transforms.json").write_text("{"), "transforms.json: can't be read as JSON"),
    "no object": (lambda f: (f / "transforms.json").write_text("[]"), "transforms.json: is not a JSON object"),
    "deep": (lambda f: (f / "transforms.json").write_text("[" * 100_000), "can't be read as JSON"),
    "no frames": (in_transforms(lambda m: m.pop("frames")), "no list of frames"),
    "no path": (frame("file_path", None), "frame 2 has no valid file_path"),
    "no matrix": (frame("transform_matrix", "x"), "no 4x4 transform_matrix"),
    "mirrored": (frame("transform_matrix", MIRRORED), "not a rotation and translation"),
    "NaN": (frame("transform_matrix", [[float("nan")] * 4] * 4), "not a rotation and translation"),
    "model": (frame("camera_model", "EQUIRECTANGULAR"), "EQUIRECTANGULAR .* is not supported"),
    "focal": (in_transforms(lambda m: m.update(fl_x=-3.0)), "focal lengths"),
    "no focal": (in_transforms(lambda m: m.pop("fl_x")), "neither fl_x nor camera_angle_x"),
    "text": (in_transforms(lambda m: m.update(cx="left")), "cx of .* is not a finite number"),
    "shape": (in_transforms(lambda m: m.update(w=100, h=100)), "not the aspect ratio of the camera's image"),
    "no maps": (lambda f: shutil.rmtree(f / "normals"), "has no normal maps"),
    "a mask missing": (lambda f: (f / "masks" / "frame_00003.png").unlink(), "no mask of the view frame_00003"),
    "map cut short": (
        lambda f: (f / "normals" / "frame_00004.png").write_bytes(
            (f / "normals" / "frame_00004.png").read_bytes()[:99]
        ),
        "frame_00004.png: is not a readable image",
    ),
    "mask inverted": (lambda f: invert(f / "masks" / "frame_00002.png"), "frame_00002.png.*mask is inverted"),
    "mask of another size": (
        lambda f: write_png(f / "masks" / "frame_00002.png", np.eye(40, dtype=bool)),
        "frame_00002.png: has 40x40 pixels",
    ),
    "world-to-camera poses": (
        in_transforms(
            lambda m: [
                fr.update(transform_matrix=np.linalg.inv(np.array(fr["transform_matrix"])).tolist())
                for fr in m["frames"]
            ]
        ),
        "invert all poses|belong together|faces away",
    ),
    "a name with a line break": (frame("file_path", "a\nb"), "frame 2 has no valid file_path"),
    "a very long name": (frame("file_path", "9" * 5000), "frame 2 has no valid file_path"),
    "a camera model with a line break": (frame("camera_model", "A\nB"), r"model A\?B of"),
    "absurd focal": (in_transforms(lambda m: m.update(fl_x=1e-300, fl_y=1e-300)), "no camera has a focal length of"),
    "one view": (in_transforms(lambda m: m.update(frames=m["frames"][:1])), "only view"),
}


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_broken_transforms_json_is_reported(kind: str, truth: AnalyticScene, tmp_path: Path):
    damage, match = TRANSFORMS[kind]
    damage(write_transforms(tmp_path / "src", truth))
    refused(tmp_path, match)


def refused(tmp_path: Path, match: str, **options) -> None:
    with pytest.raises(PmniError, match=match) as error:
        prepare(tmp_path / "src", tmp_path / "out", **options)
    line = str(error.value)
    assert line.isprintable() and ".new." not in line
    assert str(tmp_path) in line or line.startswith("--")  # a file, or an option
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


CAMERAS: dict[str, tuple[Callable[[dict], object], str]] = {
    "missing": (lambda a: a.pop("world_mat_3"), "7 cameras .* for 8 normal maps"),
    "NaN": (lambda a: a.update(world_mat_3=np.full((4, 4), np.nan)), "world_mat_3 is not a 4x4 array of finite"),
    "shape": (lambda a: a.update(world_mat_3=np.eye(3)), "world_mat_3 is not a 4x4"),
    "singular": (lambda a: a.update(world_mat_3=np.zeros((4, 4))), "world_mat_3 is not invertible"),
    "scales": (lambda a: a.update(scale_mat_3=np.eye(4)), "scale_mat_3 differs"),
    "mirrored": (
        lambda a: a.update({f"scale_mat_{i}": np.diag([-1.0, 1, 1, 1]) for i in range(8)}),
        "scale_mat_0 is not",
    ),
    "camera in the sphere": (
        lambda a: a.update({f"scale_mat_{i}": np.diag([1e5, 1e5, 1e5, 1]) for i in range(8)}),
        r"out/cameras_sphere.npz: .*inside the unit sphere.*converted from",
    ),
    "pickle": (lambda a: a.update(world_mat_3=np.array([{}], dtype=object)), "can't be read"),
}


@pytest.mark.parametrize("kind", CAMERAS)
def test_broken_idr_cameras_are_reported(kind: str, truth: AnalyticScene, tmp_path: Path):
    write_maps(tmp_path / "src", truth, NAMES)
    arrays = {name: array.astype(np.float64) for name, array in world_mats(truth).items()}
    CAMERAS[kind][0](arrays)
    np.savez(tmp_path / "src" / "cameras_sphere.npz", **arrays)
    refused(tmp_path, CAMERAS[kind][1])


def test_refit_replaces_a_wrong_sphere(truth: AnalyticScene, tmp_path: Path):
    write_maps(tmp_path / "src", truth, NAMES)
    arrays = {name: array.astype(np.float64) for name, array in world_mats(truth).items()}
    CAMERAS["camera in the sphere"][0](arrays)
    np.savez(tmp_path / "src" / "cameras_sphere.npz", **arrays)
    scene = prepare(tmp_path / "src", tmp_path / "out", refit=True)
    assert 40 < np.cbrt(np.linalg.det(scene.world_from_unit[:3, :3])) < 70


@pytest.mark.parametrize("kind", ["cut", "no KK", "no Tc", "not a rotation", "no views"])
def test_a_broken_diligent_mv_calibration_is_reported(kind: str, truth: AnalyticScene, tmp_path: Path):
    write_diligent(tmp_path / "src", truth)
    file = tmp_path / "src" / "Calib_Results.mat"
    arrays = {name: array for name, array in scipy.io.loadmat(file).items() if not name.startswith("_")}
    if kind == "no KK":
        del arrays["KK"]
    elif kind == "no Tc":
        del arrays["Tc_4"]
    elif kind == "not a rotation":
        arrays["Rc_4"] = 2 * arrays["Rc_4"]
    scipy.io.savemat(file, arrays)
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:300])
    if kind == "no views":
        for view in (tmp_path / "src").glob("view_*"):
            shutil.rmtree(view)
    match = {"cut": "can't be read as a MATLAB file", "no KK": "no 3x3 matrix KK", "no Tc": "no Rc_4 .* Tc_4"}
    refused(tmp_path, match.get(kind, "not a rotation and translation|no folders view_01"))


@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_files_of_scipy_are_read(compressed: bool, tmp_path: Path):
    rng = np.random.default_rng(0)
    arrays = {
        "KK": rng.normal(size=(3, 3)),
        "n": rng.normal(size=(5, 4, 3)).astype(np.float32),
        "i": np.array([[1, 200]], dtype=np.uint8),
    }
    others = {
        "text": "mask",
        "cell": np.array([1, "a"], dtype=object),
        "complex": np.array([[1j]]),
        "none": np.zeros((0, 3)),
    }
    scipy.io.savemat(tmp_path / "a.mat", {**arrays, **others}, do_compression=compressed)
    read = read_mat(tmp_path / "a.mat")
    assert read.keys() == {*arrays, "none"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
    whole = (tmp_path / "a.mat").read_bytes()
    for change in (whole[:-30], whole[:100], b"\x89HDF" + whole[4:], whole[:140] + b"\xff" * 8 + whole[148:]):
        (tmp_path / "b.mat").write_bytes(change)
        with pytest.raises(PmniError, match="b.mat: can't be read as a MATLAB file"):
            read_mat(tmp_path / "b.mat")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "has no camera intrinsics; give --focal"),
        ({"focal": 300.0, "fov": 20.0}, "give one of them"),
        ({"focal": -1.0}, "not a focal length"),
        ({"fov": 180.0}, "not a field of view"),
        ({"focal": 300.0, "size": "big"}, "--size: big"),
        ({"focal": 300.0, "size": "9x9000000"}, "--size"),
        ({"focal": 300.0, "normals": "none"}, "no such folder of normal maps"),
        ({"focal": 300.0, "axes": "world"}, "need poses"),
        ({"format": "colmap"}, "no COLMAP model"),
        ({"format": "neus"}, "has none of cameras_sphere.npz"),
        ({"format": "metashape"}, "no cameras of Metashape"),
        ({"format": "nerfstudio"}, "transforms.json: No such file"),
        ({"format": "diligent-mv"}, "no scene of the format diligent-mv"),
    ],
)
def test_invalid_options_are_reported(options: dict, match: str, truth: AnalyticScene, tmp_path: Path):
    write_maps(tmp_path / "src", truth, NAMES)
    refused(tmp_path, match, **options)


def test_an_unknown_or_missing_source_is_reported(tmp_path: Path):
    (tmp_path / "src").mkdir()
    refused(tmp_path, "has no known format")
    with pytest.raises(PmniError, match="does not exist"):
        prepare(tmp_path / "other", tmp_path / "out")


def test_maps_without_masks_and_with_background_normals_are_refused(truth: AnalyticScene, tmp_path: Path):
    filled = replace(truth, masks=np.ones_like(truth.masks), normals=truth.normals.copy())
    filled.normals[~truth.masks] = [0, 0, -1]
    write_maps(tmp_path / "src", filled, NAMES, masks=None)
    refused(tmp_path, "has no mask, and normals in every pixel", focal=300.0)


# ---- existing files --------------------------------------------------------------------------------------------------


def test_existing_files_are_kept_unless_a_scene_is_to_be_overwritten(truth: AnalyticScene, tmp_path: Path):
    source = write_transforms(tmp_path / "src", truth)
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    for overwrite, match in ((False, "exists already; add --overwrite"), (True, "is not a scene")):
        with pytest.raises(PmniError, match=match):
            prepare(source, out, overwrite=overwrite)
    assert (out / "thesis.tex").read_text() == "years"
    (out / "thesis.tex").unlink()
    prepare(source, out)  # an empty folder may be replaced
    with pytest.raises(PmniError, match="add --overwrite"):
        prepare(source, out)
    assert prepare(source, out, overwrite=True, size="36x30").width == 36
    (source / "masks" / "frame_00001.png").write_bytes(b"")
    with pytest.raises(PmniError, match="frame_00001"):
        prepare(source, out, overwrite=True)
    assert read_scene(out).width == 36 and sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]


def test_the_source_is_never_replaced(truth: AnalyticScene, tmp_path: Path):
    source = write_transforms(tmp_path / "src", truth)
    for out in (source, tmp_path):
        with pytest.raises(PmniError, match="is or contains the source"):
            prepare(source, out, overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_reported(truth: AnalyticScene, tmp_path: Path):
    source = write_transforms(tmp_path / "src", truth)
    (tmp_path / "place").mkdir(mode=0o500)
    with pytest.raises(PmniError, match="can't be written"):
        prepare(source, tmp_path / "place" / "out")

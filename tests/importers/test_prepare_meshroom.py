# SPDX-License-Identifier: Apache-2.0
"""`pmni prepare`: Meshroom's cameras in the file's versions, and scene folders that have to be mended."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.importer_checks import assert_is, prepare
from helpers.importer_files import NAMES, write_maps, write_transforms
from helpers.scenes import AnalyticScene, make_tilted_ellipsoid

from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import PmniError


@pytest.fixture(scope="module")
def truth() -> AnalyticScene:
    return make_tilted_ellipsoid()


def intrinsic(truth: AnalyticScene, version: tuple[int, ...]) -> dict:
    """The same camera in the words of a version of the file; fx and fy differ by 2%."""
    (width, height), fx, fy = truth.size, truth.K[0, 0, 0], truth.K[0, 1, 1]
    point = truth.K[0, :2, 2] + 0.5
    if version >= (1, 2, 1):
        point = point - np.array(truth.size) / 2
    part: dict = {"intrinsicId": "7", "width": str(width), "height": str(height), "type": "pinhole"}
    part["principalPoint"] = [repr(float(value)) for value in point]
    if version < (1, 2, 2):
        part["pxFocalLength"] = [repr(float(fx)), repr(float(fy))] if version >= (1, 2, 0) else repr(float(fx))
        return part
    part |= {"sensorWidth": "24", "focalLength": repr(float((fy if version >= (1, 2, 11) else fx) * 24 / width))}
    part["pixelRatio"] = repr(float(fx / fy if version < (1, 2, 5) or version >= (1, 2, 11) else fy / fx))
    if version >= (1, 2, 11):
        part["pixelRatio"] = repr(float(fy / fx))
    return part


def write_sfm(file: Path, truth: AnalyticScene, version: tuple[int, ...] = (1, 2, 6), **changes) -> None:
    views, poses = [], []
    for i, (name, pose) in enumerate(zip(NAMES, truth.data_c2w)):
        key = str(100 + i)
        path = f"C:/photos/{name}.JPG"
        views.append({"viewId": key, "poseId": key, "intrinsicId": "7", "path": path})
        transform = {"rotation": [repr(float(v)) for v in pose[:3, :3].ravel()], "center": pose[:3, 3].tolist()}
        poses.append({"poseId": key, "pose": {"transform": transform}})
    data = {"version": [str(v) for v in version], "views": views, "poses": poses}
    file.write_text(json.dumps({**data, "intrinsics": [intrinsic(truth, version) | changes]}))


@pytest.mark.parametrize("version", [(1, 1, 0), (1, 2, 0), (1, 2, 1), (1, 2, 3), (1, 2, 6), (1, 2, 11)])
def test_versions_of_sfm_files(version: tuple[int, ...], truth: AnalyticScene, tmp_path: Path, capsys):
    write_maps(tmp_path / "src", truth, NAMES)
    write_sfm(tmp_path / "src" / "cameras.sfm", truth, version)
    assert_is(prepare(tmp_path / "src", tmp_path / "out"), truth, has_sphere=False)
    assert "Meshroom's cameras.sfm" in capsys.readouterr().out


def test_pixels_that_are_not_square(truth: AnalyticScene, tmp_path: Path):
    from dataclasses import replace

    K = truth.K * np.array([[1.0], [1.02], [1.0]])
    K[:, 1, 2] = truth.K[:, 1, 2]
    wide = replace(truth, K=K)
    from pmni_nerfstudio.importers.registry import FORMATS
    from pmni_nerfstudio.importers.source import ImportOptions

    for version in ((1, 2, 0), (1, 2, 3), (1, 2, 6), (1, 2, 11)):
        folder = tmp_path / str(version)
        write_maps(folder, truth, NAMES)
        write_sfm(folder / "sfm.json", wide, version)
        for frame in FORMATS["meshroom"].read(folder, ImportOptions()).frames:
            np.testing.assert_allclose(frame.K, K[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"width": "0"}, "no pixels"),
        ({"focalLength": "x"}, "can't be read as Meshroom's cameras"),
        ({"distortionType": "3deanamorphic4", "distortionParams": [0.1]}, "3deanamorphic4 is not supported"),
        ({"intrinsicId": "8"}, "no view with a pose"),
    ],
)
def test_broken_sfm_files_are_reported(changes: dict, match: str, truth: AnalyticScene, tmp_path: Path):
    write_maps(tmp_path / "src", truth, NAMES)
    write_sfm(tmp_path / "src" / "cameras.sfm", truth, **changes)
    with pytest.raises(PmniError, match=match):
        prepare(tmp_path / "src", tmp_path / "out")


def test_views_without_a_pose_are_named(truth: AnalyticScene, tmp_path: Path, capsys):
    write_maps(tmp_path / "src", truth, NAMES)
    file = tmp_path / "src" / "cameras.sfm"
    write_sfm(file, truth)
    data = json.loads(file.read_text())
    data["poses"] = data["poses"][:6]
    file.write_text(json.dumps(data))
    assert prepare(tmp_path / "src", tmp_path / "out").num_views == 6
    text = " ".join(capsys.readouterr().err.split())
    assert (
        "2 views (first C:/photos/006.JPG) have no pose" in text and "2 normal maps, of 8, that have no camera" in text
    )


# ---- scene folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["masks twice as large", "a view taken out", "masks padded otherwise"])
def test_scene_folders_that_training_refuses_are_mended(fault: str, truth: AnalyticScene, tmp_path: Path, capsys):
    source = truth.write(tmp_path / "src")
    for file in sorted((source / "mask").iterdir()):
        if fault == "masks twice as large":
            cv2.imwrite(str(file), np.kron(cv2.imread(str(file), 0), np.ones((2, 2), np.uint8)))
        elif fault == "masks padded otherwise":
            file.rename(file.with_name(f"0{file.name}"))
        elif file.stem == "003":
            file.unlink()
            (source / "normal_camera_space_GT" / "003.exr").unlink()
    scene = prepare(source, tmp_path / "out")
    kept = [i for i in range(8) if fault != "a view taken out" or i != 3]
    np.testing.assert_array_equal(scene.masks, truth.masks[kept])
    assert scene.c2w is not None
    np.testing.assert_allclose(scene.c2w, truth.c2w[kept], atol=1e-9)
    assert "It is converted" in " ".join(capsys.readouterr().err.split())


def test_a_valid_scene_folder_is_left_alone(truth: AnalyticScene, tmp_path: Path, capsys):
    from pmni_nerfstudio.cli import main

    source = truth.write(tmp_path / "src")
    assert read_scene(source).warnings == ()
    main(["prepare", str(source), str(tmp_path / "out")])
    assert "nothing to do" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_other_cameras_in_the_source_are_named(truth: AnalyticScene, tmp_path: Path, capsys):
    write_transforms(tmp_path / "src", truth)
    write_sfm(tmp_path / "src" / "cameras.sfm", truth)
    prepare(tmp_path / "src", tmp_path / "out")
    assert "is read as nerfstudio; it has cameras of meshroom as well" in " ".join(capsys.readouterr().err.split())
    write_maps(tmp_path / "plain", truth, NAMES)
    (tmp_path / "plain" / "bundle.out").write_text("")
    prepare(tmp_path / "plain", tmp_path / "no_poses", focal=300.0)
    assert "bundle.out may hold cameras but" in " ".join(capsys.readouterr().err.split())

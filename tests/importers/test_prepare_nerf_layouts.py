# SPDX-License-Identifier: Apache-2.0
"""`pmni prepare`: the layout of nerf_synthetic, and cameras.json of 3D Gaussian Splatting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.importer_checks import assert_is, prepare
from helpers.importer_files import NAMES, as_colors, write_maps
from helpers.scenes import AnalyticScene, make_tilted_ellipsoid
from PIL import Image

from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.errors import PmniError


@pytest.fixture(scope="module")
def truth() -> AnalyticScene:
    return make_tilted_ellipsoid()


# ---- nerf_synthetic -------------------------------------------------------------------------------------------------


def write_nerf(
    folder: Path, truth: AnalyticScene, ending: str = "_normal_0001", parts: tuple[str, ...] = ("test",)
) -> None:
    """Three splits with images that are named alike, cut out by alpha; `parts` have normals in world axes, and depths."""
    angle = 2 * float(np.arctan(truth.size[0] / 2 / truth.K[0, 0, 0]))
    for part, views in (("train", [0, 1, 2]), ("val", [3]), ("test", [4, 5, 6, 7])):
        (folder / part).mkdir(parents=True)
        frames = []
        for i, view in enumerate(views):
            pixels = np.full((*truth.masks[view].shape, 4), 200, np.uint8)
            pixels[..., 3] = 255 * truth.masks[view]
            write_png(folder / part / f"r_{i}.png", pixels)
            if part in parts:
                colors = as_colors(truth.stored_normals(view, "world"), truth.masks[view])
                write_png(folder / part / f"r_{i}{ending}.png", colors)
                write_png(folder / part / f"r_{i}_depth_0001.png", pixels[..., :3])
            c2w = truth.data_c2w[view] @ np.diag([1.0, -1, -1, 1])
            frames.append({"file_path": f"./{part}/r_{i}", "rotation": 0.03, "transform_matrix": c2w.tolist()})
        text = json.dumps({"camera_angle_x": angle, "frames": frames})
        (folder / f"transforms_{part}.json").write_text(text)


@pytest.mark.parametrize("ending", ["_normal_0001", "_normal"])
def test_normals_beside_the_images(truth: AnalyticScene, tmp_path: Path, ending: str, capsys):
    write_nerf(tmp_path / "src", truth, ending)
    scene = prepare(tmp_path / "src", tmp_path / "out")
    assert scene.names == ("test_r_0", "test_r_1", "test_r_2", "test_r_3")
    assert_is(scene, truth.subset([4, 5, 6, 7]), has_sphere=False)
    assert "4 images (first train_r_0) have no normal map and were left out" in " ".join(
        capsys.readouterr().err.split()
    )


def test_all_splits_are_read_together(truth: AnalyticScene, tmp_path: Path):
    write_nerf(tmp_path / "src", truth, parts=("train", "val", "test"))
    scene = prepare(tmp_path / "src", tmp_path / "out")
    assert scene.num_views == 8 and scene.names[0] == "test_r_0" and scene.names[-1] == "val_r_0"
    assert_is(scene, truth.subset([4, 5, 6, 7, 0, 1, 2, 3]), has_sphere=False)


def test_clipped_normals_are_refused(truth: AnalyticScene, tmp_path: Path):
    """Blender's Normal pass saved as PNG without a change of range has lost all negative components."""
    write_nerf(tmp_path / "src", truth)
    for i, view in enumerate([4, 5, 6, 7]):
        normals = truth.stored_normals(view, "world").clip(0, 1)
        pixels = np.round(normals * 255 * truth.masks[view][..., None]).astype(np.uint8)
        write_png(tmp_path / "src" / "test" / f"r_{i}_normal_0001.png", pixels)
    with pytest.raises(PmniError, match=r"_normal_0001.png: .*(clipped|length|axes)"):
        prepare(tmp_path / "src", tmp_path / "out")


# ---- 3D Gaussian Splatting ------------------------------------------------------------------------------------------


def write_splatting(folder: Path, truth: AnalyticScene, **changes) -> None:
    """cameras.json as utils/camera_utils.py of graphdeco-inria/gaussian-splatting (commit 01f08747) stores a camera."""
    cameras = []
    for view, (name, c2w) in enumerate(zip(NAMES, truth.data_c2w)):
        entry = {"id": view, "img_name": name, "width": truth.size[0], "height": truth.size[1]}
        entry |= {"position": c2w[:3, 3].tolist(), "rotation": c2w[:3, :3].tolist()}
        cameras.append(entry | {"fy": float(truth.K[view, 1, 1]), "fx": float(truth.K[view, 0, 0])} | changes)
    (folder / "cameras.json").write_text(json.dumps(cameras))


def test_cameras_of_gaussian_splatting(truth: AnalyticScene, tmp_path: Path, capsys):
    write_maps(tmp_path / "src", truth, NAMES)
    write_splatting(tmp_path / "src", truth)
    (tmp_path / "src" / "images").mkdir()
    for name in NAMES:
        Image.new("RGB", truth.size, (90, 80, 70)).save(tmp_path / "src" / "images" / f"{name}.jpg")
    assert_is(prepare(tmp_path / "src", tmp_path / "out"), truth, has_sphere=False)  # its principal point is the middle
    assert "3D Gaussian Splatting's cameras.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rotation": [[1, 0], [0, 1]]}, "can't be read"),
        ({"fx": 0}, "focal lengths of 000 are not positive"),
        ({"rotation": [[1, 0, 0], [0, 1, 0], [0, 0, -1]]}, "pose of 000 is not a rotation and translation"),
        ({"width": 0}, "000 has no pixels"),
    ],
)
def test_faults_of_these_cameras_are_one_line(changes: dict, match: str, truth: AnalyticScene, tmp_path: Path):
    write_maps(tmp_path / "src", truth, NAMES)
    write_splatting(tmp_path / "src", truth, **changes)
    with pytest.raises(PmniError, match=match):
        prepare(tmp_path / "src", tmp_path / "out")


def test_other_lists_of_cameras_are_named(truth: AnalyticScene, tmp_path: Path, capsys):
    write_maps(tmp_path / "src", truth, NAMES)
    (tmp_path / "src" / "cameras.json").write_text(json.dumps([{"K": [[1, 0, 0]], "R": [], "t": []}]))
    prepare(tmp_path / "src", tmp_path / "out", focal=400.0)
    assert "cameras.json may hold cameras but" in " ".join(capsys.readouterr().err.split())

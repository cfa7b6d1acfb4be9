# SPDX-License-Identifier: Apache-2.0
"""`pmni prepare`: one object of LUCES-MV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.importer_checks import assert_is, prepare
from helpers.importer_files import as_colors
from helpers.scenes import AnalyticScene, make_tilted_ellipsoid

from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.errors import PmniError

LIGHT = "1 2 3 0 0 1 1 1 1 0.5 0\n"


@pytest.fixture(scope="module")
def truth() -> AnalyticScene:
    return make_tilted_ellipsoid()


def calibration(truth: AnalyticScene, lights: int = 3, focal: float | None = None) -> str:
    (width, height), k = truth.size, truth.K[0]
    values = [3, height, width, k[0, 0] if focal is None else focal, k[0, 2], k[1, 2], 300.0]
    return "lights height width f cx cy distance\n" + " ".join(map(repr, map(float, values))) + "\n" + lights * LIGHT


def write(folder: Path, truth: AnalyticScene, normals: str | None = None) -> Path:
    """Views six numbers apart, with ground-truth normals in their folders, or in a folder of that name."""
    for view in range(8):
        name = f"view_{6 * view:03d}"
        place = folder / name
        place.mkdir(parents=True)
        w2c = np.linalg.inv(truth.data_c2w[view]).astype(np.float32)
        np.savez(place / "RT.npz", R=w2c[:3, :3], T=w2c[:3, 3])
        write_png(place / "mask.png", truth.masks[view])
        write_png(place / "01.png", np.full((*truth.masks[view].shape, 3), 700, np.uint16))
        file = place / "normals.png" if normals is None else folder / normals / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        write_png(file, as_colors(truth.stored_normals(view, "camera"), truth.masks[view]))
    return folder


@pytest.mark.parametrize(("place", "normals"), [("src", None), (".", "normal_sdmunips")])
def test_an_object(truth: AnalyticScene, tmp_path: Path, place: str, normals: str | None, capsys):
    write(tmp_path / "src", truth, normals)
    (tmp_path / place / "camera_1.txt").write_text(calibration(truth))
    scene = prepare(tmp_path / "src", tmp_path / "out")
    assert scene.names[1] == "view_006"
    assert_is(scene, truth, normals_deg=0.2, has_sphere=False)
    printed = capsys.readouterr()
    assert "LUCES-MV, intrinsics from camera_1.txt" in printed.out and "known from other readers only" in printed.err


def test_faults_are_one_line(truth: AnalyticScene, tmp_path: Path):
    write(tmp_path / "src", truth)
    with pytest.raises(PmniError, match="has no text file with LUCES's intrinsics"):
        prepare(tmp_path / "src", tmp_path / "out")
    (tmp_path / "src" / "camera_1.txt").write_text(calibration(truth, lights=2))
    with pytest.raises(PmniError, match="announces 3 lights of 72x60 pixels and holds 2 lights"):
        prepare(tmp_path / "src", tmp_path / "out")
    (tmp_path / "src" / "camera_1.txt").write_text(calibration(truth))
    (tmp_path / "src" / "camera_2.txt").write_text(calibration(truth, focal=100.0))
    with pytest.raises(PmniError, match=r"camera_2.txt: has other intrinsics than camera_1.txt"):
        prepare(tmp_path / "src", tmp_path / "out")
    (tmp_path / "src" / "camera_2.txt").unlink()
    np.savez(tmp_path / "src" / "view_012" / "RT.npz", R=np.eye(2), T=np.zeros(3))
    with pytest.raises(PmniError, match=r"view_012/RT.npz: has no R \(3x3\) and T"):
        prepare(tmp_path / "src", tmp_path / "out")

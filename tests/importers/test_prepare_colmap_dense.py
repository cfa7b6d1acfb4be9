# SPDX-License-Identifier: Apache-2.0
"""Normal maps of COLMAP's dense stereo beside the model of the undistorted images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.importer_checks import assert_is, prepare
from helpers.importer_files import NAMES, write_maps, write_model
from helpers.scenes import AnalyticScene, make_tilted_ellipsoid

from pmni_nerfstudio.errors import PmniError


@pytest.fixture(scope="module")
def truth() -> AnalyticScene:
    return make_tilted_ellipsoid()


def write_map(path: Path, values: np.ndarray) -> None:
    """Encode an array (H, W, channels) as COLMAP's src/colmap/mvs/mat.h does (commit 02e8ba8f): plane by plane."""
    height, width, channels = values.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = np.moveaxis(values, -1, 0).astype("<f4")
    path.write_bytes(f"{width}&{height}&{channels}&".encode() + planes.tobytes())


def write_workspace(root: Path, truth: AnalyticScene, kinds: dict[str, float]) -> Path:
    """A dense workspace with maps of the given kinds, whose normals are turned about the optical axis by an angle in degrees."""
    write_model(root / "sparse", truth, ".bin", [f"cam/{name}.jpg" for name in NAMES])
    for kind, angle in kinds.items():
        c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        for view, name in enumerate(NAMES):
            normals = truth.normals[view] @ turn.T
            write_map(root / "stereo" / "normal_maps" / "cam" / f"{name}.jpg.{kind}.bin", normals)
            write_map(root / "stereo" / "depth_maps" / "cam" / f"{name}.jpg.{kind}.bin", truth.depths[view][..., None])
    return root


def test_geometric_maps_are_preferred(truth: AnalyticScene, tmp_path: Path, capsys):
    write_workspace(tmp_path / "src", truth, {"geometric": 0.0, "photometric": 10.0})
    assert_is(prepare(tmp_path / "src", tmp_path / "out"), truth, has_sphere=False)
    printed = capsys.readouterr()
    assert "geometric normal maps of its dense stereo" in printed.out
    assert "normals of COLMAP's dense stereo (geometric), which are off by many degrees" in " ".join(
        printed.err.split()
    )


def test_photometric_maps_of_a_workspace_in_a_subfolder(truth: AnalyticScene, tmp_path: Path):
    write_workspace(tmp_path / "src" / "dense" / "0", truth, {"photometric": 0.0})
    other = tmp_path / "src" / "sparse" / "0"  # the model of the photographs, which are not undistorted
    write_model(other, truth.subset([7, 6, 5, 4, 3, 2, 1, 0]), ".bin", [f"cam/{name}.jpg" for name in NAMES])
    assert_is(prepare(tmp_path / "src", tmp_path / "out"), truth, has_sphere=False)


def test_maps_in_normal_come_first(truth: AnalyticScene, tmp_path: Path, capsys):
    write_workspace(tmp_path / "src", truth, {"geometric": 20.0})
    write_maps(tmp_path / "src", truth, NAMES)
    assert_is(prepare(tmp_path / "src", tmp_path / "out"), truth, has_sphere=False)
    assert "dense stereo" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"72&60&1&" + bytes(4 * 72 * 60), "give normal_maps and not depth_maps"),
        (b"72&60&3&" + bytes(100), "is truncated or damaged"),
        (b"999999&999999&3&", "pixels according to its header"),
        (b"72x60", "is not a map of COLMAP's dense stereo"),
    ],
)
def test_broken_maps_are_one_line(content: bytes, match: str, truth: AnalyticScene, tmp_path: Path):
    write_workspace(tmp_path / "src", truth, {"geometric": 0.0})
    file = tmp_path / "src" / "stereo" / "normal_maps" / "cam" / f"{NAMES[3]}.jpg.geometric.bin"
    file.write_bytes(content)
    with pytest.raises(PmniError, match=match) as error:
        prepare(tmp_path / "src", tmp_path / "out")
    assert str(file) in str(error.value)

# SPDX-License-Identifier: Apache-2.0
"""`pmni prepare`: cameras of RealityScan, in XMP files and in its table of cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.importer_checks import assert_is, prepare
from helpers.importer_files import NAMES, write_maps
from helpers.scenes import AnalyticScene, look_at, make_tilted_ellipsoid
from nerfstudio.process_data.realitycapture_utils import _get_rotation_matrix
from PIL import Image

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.importers.registry import FORMATS
from pmni_nerfstudio.importers.source import ImportOptions

XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/">
  <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
    <rdf:Description xcr:Version="3" xcr:PosePrior="initial" xcr:Coordinates="absolute"
       xcr:DistortionModel="{model}" xcr:FocalLength35mm="{focal}" xcr:Skew="0" xcr:AspectRatio="1"
       xcr:PrincipalPointU="{u}" xcr:PrincipalPointV="{v}" xcr:CalibrationPrior="initial" {more}
       xmlns:xcr="http://www.capturingreality.com/ns/xcr/1.1#">
      {pose}
      <xcr:DistortionCoeficients>{lens}</xcr:DistortionCoeficients>
    </rdf:Description>
  </rdf:RDF>
</x:xmpmeta>
"""


@pytest.fixture(scope="module")
def truth() -> AnalyticScene:
    return make_tilted_ellipsoid()


def in_file(truth: AnalyticScene, view: int) -> tuple[float, float, float]:
    """Focal length for 36 mm film and the principal point in units of the longer side, from the middle."""
    (width, height), K = truth.size, truth.K[view]
    longer = max(width, height)
    point = (K[:2, 2] + 0.5 - np.array([width, height]) / 2) / longer
    return float(K[0, 0] / longer * 36), float(point[0]), float(point[1])


def write_images(folder: Path, truth: AnalyticScene) -> Path:
    write_maps(folder, truth, NAMES)
    (folder / "images").mkdir()
    for name in NAMES:
        Image.new("RGB", truth.size, (90, 80, 70)).save(folder / "images" / f"{name}.jpg")
    return folder


def write_xmp(
    folder: Path, truth: AnalyticScene, as_attributes: bool = False, place: str = "images", **changes
) -> None:
    for view, name in enumerate(NAMES):
        focal, u, v = in_file(truth, view)
        w2c = np.linalg.inv(truth.data_c2w[view])
        rotation = " ".join(repr(float(value)) for value in w2c[:3, :3].ravel())
        position = " ".join(repr(float(value)) for value in truth.data_c2w[view, :3, 3])
        pose = f"<xcr:Position>{position}</xcr:Position>"
        more = f'xcr:Rotation="{rotation}"' if as_attributes else ""
        pose += "" if as_attributes else f"\n<xcr:Rotation>{rotation}</xcr:Rotation>"
        fields = {"focal": focal, "u": u, "v": v, "model": "brown3", "lens": "0 0 0 0 0 0", "pose": pose, "more": more}
        (folder / place / f"{name}.xmp").write_text(XMP.format(**(fields | changes)))


def angles_of(R: np.ndarray) -> tuple[float, float, float]:
    """Heading, pitch and roll in degrees of a camera with OpenGL axes, R = Rz(-heading) Rx(pitch) Ry(roll)."""
    pitch = np.arcsin(R[2, 1])
    return (
        float(np.rad2deg(np.arctan2(R[0, 1], R[1, 1]))),
        float(np.rad2deg(pitch)),
        float(np.rad2deg(np.arctan2(-R[2, 0], R[2, 2]))),
    )


def write_table(folder: Path, truth: AnalyticScene, **changes: str) -> Path:
    lines = ["#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2"]
    for view, name in enumerate(NAMES):
        c2w = truth.data_c2w[view] @ np.diag([1.0, -1, -1, 1])
        heading, pitch, roll = angles_of(c2w[:3, :3])
        np.testing.assert_allclose(_get_rotation_matrix(-heading, pitch, roll), c2w[:3, :3], atol=1e-9)
        focal, u, v = in_file(truth, view)
        fields = dict(zip(lines[0].split(","), [f"{name}.jpg", *map(repr, map(float, c2w[:3, 3]))], strict=False))
        fields |= {"heading": repr(heading), "pitch": repr(pitch), "roll": repr(roll), "f": repr(focal)}
        fields |= {"px": repr(u), "py": repr(v), **{key: "0" for key in ("k1", "k2", "k3", "k4", "t1", "t2")}}
        lines.append(",".join((fields | changes).values()))
    (folder / "cameras.csv").write_text("\n".join(lines) + "\n")
    return folder / "cameras.csv"


@pytest.mark.parametrize("as_attributes", [False, True])
def test_xmp_files_beside_the_images(truth: AnalyticScene, tmp_path: Path, as_attributes: bool, capsys):
    write_xmp(write_images(tmp_path / "src", truth), truth, as_attributes)
    assert_is(prepare(tmp_path / "src", tmp_path / "out"), truth, has_sphere=False)
    assert "RealityScan's 8 XMP files" in capsys.readouterr().out


def test_the_makers_example_looks_down_at_the_scene():
    """Rotation and position that Epic's page on XMP shows: the y axis of the camera points down in a world with z up."""
    R = np.array([-0.6008, 0.7994, -0.0035, -0.2108, -0.1626, -0.9639, -0.7711, -0.5784, 0.2662]).reshape(3, 3)
    assert np.linalg.det(R) == pytest.approx(1, abs=1e-3) and R[1, 2] < -0.9  # as `look_at`, which has OpenCV axes
    assert look_at(np.array([5.0, 4.0, -1.5]))[2, 1] < -0.9


def test_portrait_images_and_principal_points(truth: AnalyticScene, tmp_path: Path):
    from dataclasses import replace

    K = np.array([[400.0, 0, 33.0], [0, 400.0, 41.0], [0, 0, 1]])
    tall = replace(truth, K=np.repeat(K[None], 8, axis=0), masks=np.zeros((8, 90, 60), bool))
    folder = tmp_path / "src"
    write_images(folder, replace(tall, normals=np.zeros((8, 90, 60, 3)), depths=np.zeros((8, 90, 60))))
    write_xmp(folder, tall)
    for frame in FORMATS["realityscan"].read(folder, ImportOptions()).frames:
        np.testing.assert_allclose(frame.K, K, rtol=1e-9)


def test_table_of_cameras(truth: AnalyticScene, tmp_path: Path, capsys):
    write_table(write_images(tmp_path / "src", truth), truth)
    assert_is(prepare(tmp_path / "src", tmp_path / "out"), truth, has_sphere=False)
    assert "RealityScan's cameras.csv" in capsys.readouterr().out


def test_radial_distortion_is_kept(truth: AnalyticScene, tmp_path: Path):
    folder = write_images(tmp_path / "src", truth)
    write_xmp(folder, truth, lens="0.1 -0.02 0.003 0 0 0")
    table = write_table(write_images(tmp_path / "table", truth), truth, k1="0.1", k2="-0.02", k3="0.003").parent
    for root in (folder, table):
        for frame in FORMATS["realityscan"].read(root, ImportOptions()).frames:
            assert frame.lens.coefficients == (0.1, -0.02, 0.0, 0.0, 0.003) and not frame.lens.is_fisheye


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"lens": "0.1 0 0 0 0.01 0"}, "tangential distortion .* are not supported; undistort"),
        ({"model": "division", "lens": "0.1 0 0 0 0 0"}, "distortion model division is not supported"),
        ({"pose": ""}, "no XMP file holds a pose"),
        ({"focal": "wide"}, "can't be read"),
        ({"pose": "<xcr:Rotation>1 2 3</xcr:Rotation><xcr:Position>1 2 3</xcr:Position>"}, "can't be read"),
    ],
)
def test_faults_of_xmp_files_are_one_line(changes: dict, match: str, truth: AnalyticScene, tmp_path: Path):
    write_xmp(write_images(tmp_path / "src", truth), truth, **changes)
    with pytest.raises(PmniError, match=match):
        prepare(tmp_path / "src", tmp_path / "out")


def test_faults_of_tables_are_one_line(truth: AnalyticScene, tmp_path: Path):
    folder = write_images(tmp_path / "src", truth)
    write_table(folder, truth, pitch="")
    with pytest.raises(PmniError, match="pitch of 000.jpg is missing or not a number"):
        prepare(folder, tmp_path / "out")
    write_table(folder, truth)
    (folder / "images" / "004.jpg").unlink()
    with pytest.raises(PmniError, match="the image 004.jpg is missing, whose size its intrinsics need"):
        prepare(folder, tmp_path / "out")

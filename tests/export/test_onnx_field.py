# SPDX-License-Identifier: Apache-2.0
"""ONNX models of fields: the same distances and gradients as the model's, in onnxruntime."""

from __future__ import annotations

import json
import runpy
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.trained_run import TrainedRun
from PIL import Image
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.export.onnx_field import Precision, onnx_field, require_onnx
from pmni_nerfstudio.export.world_sdf import WorldSdf, world_sdf
from pmni_nerfstudio.fields.encodings import LevelEncoding
from pmni_nerfstudio.fields.mlp import EncodedSdf
from pmni_nerfstudio.fields.sdf_field import PmniField, PmniFieldConfig
from pmni_nerfstudio.geometry.interpolation import grid_points
from pmni_nerfstudio.training.trained_run import load_run

RADIUS, CENTER = 40.0, np.array([500.0, -20.0, 7.0])
SMALL: dict[str, Any] = {
    "grid_vertices": (9, 17, 33, 65),
    "dense_vertices": (12, 24, 48),
    "hash_levels": 6,
    "hash_base_vertices": 12,
    "hash_growth": 1.5,
    "hash_log2_table": 14,
    "hash_implementation": "torch",
    "sphere_radius": 0.6,
}


@cache
def field_in_world(encoding: str, progress: float = 1.0) -> WorldSdf:
    """A field with detail, in a world that is turned, shifted and scaled."""
    torch.manual_seed(0)
    field = PmniField(PmniFieldConfig(encoding=encoding, **SMALL))  # pyright: ignore[reportArgumentType]
    field.set_progress(progress)
    torus = torch.stack([(x := grid_points(48, torch.device("cpu")))[..., :2].norm(dim=-1) - 0.55, x[..., 2]]).norm(
        dim=0
    )
    field.fit(torus - 0.25, steps=30)
    world_from_unit = np.eye(4)
    world_from_unit[:3, :3] = RADIUS * Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
    world_from_unit[:3, 3] = CENTER
    return WorldSdf(field, world_from_unit)


def session(sdf: WorldSdf, precision: Precision = "float32") -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(onnx_field(sdf, "mm", precision).SerializeToString())


def points_around(sdf: WorldSdf, count: int = 5000) -> np.ndarray:
    """Points (count, 3) in the cube that circumscribes the scene's sphere."""
    unit = np.random.default_rng(0).uniform(-0.999, 0.999, (count, 3))
    return (unit @ sdf.world_from_unit[:3, :3].T + sdf.center).astype(np.float32)


@pytest.mark.parametrize("encoding", ["grid", "dense", "hash"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float16", 1e-3)])
def test_distances_and_gradients_are_those_of_the_model(encoding: str, precision: Precision, tolerance: float):
    sdf = field_in_world(encoding)
    points = points_around(sdf)
    if encoding == "hash":
        entries = 1 << SMALL["hash_log2_table"]
        assert any(n**3 > entries for n in sdf.field.levels.vertices)  # both kinds of levels
    distance, gradient = sdf(points)
    found, slope = session(sdf, precision).run(None, {"points": points})
    assert found.dtype == np.float32 and found.shape == (len(points),) and slope.shape == points.shape
    assert np.abs(found - distance).max() < tolerance * 2 * RADIUS
    # A gradient jumps from cell to cell, and rounding may put a point into a neighboring one.
    off = np.abs(slope - gradient).max(axis=1)
    assert np.quantile(off, 0.998) < (1e-4 if precision == "float32" else 5e-3)
    assert np.ptp(distance) > RADIUS  # not a constant


def test_locked_levels_are_left_out():
    for encoding in ("grid", "hash"):
        sdf = field_in_world(encoding, progress=0.0)
        points = points_around(sdf, 2000)
        found, _ = session(sdf).run(None, {"points": points})
        assert np.abs(found - sdf(points)[0]).max() < 1e-5 * 2 * RADIUS


def test_half_precision_halves_the_file():
    sdf = field_in_world("grid")
    sizes = [onnx_field(sdf, "mm", precision).ByteSize() for precision in ("float32", "float16")]
    assert sizes[1] < 0.51 * sizes[0]


def test_points_outside_the_scene_are_nan_and_any_number_of_points_is_taken():
    sdf = field_in_world("grid")
    model = session(sdf)
    far = (sdf.center + [[2 * RADIUS, 0, 0], [0, 0, 0]]).astype(np.float32)
    distance, gradient = model.run(None, {"points": far})
    assert np.isnan(distance[0]) and np.isnan(gradient[0]).all()
    assert np.isfinite(distance[1]) and np.isfinite(gradient[1]).all()
    assert model.run(None, {"points": far[:0]})[1].shape == (0, 3)


def test_the_example_renders_a_ball_by_sphere_tracing(tmp_path: Path):
    """The picture shows the ball's disc and its normals, in a world that is turned, shifted and scaled."""
    field = PmniField(PmniFieldConfig(encoding="grid", grid_vertices=(65,), sphere_radius=0.5))
    sdf = WorldSdf(field, field_in_world("grid").world_from_unit)
    (tmp_path / "field.onnx").write_bytes(onnx_field(sdf, "mm").SerializeToString())
    example = Path(__file__).parents[2] / "examples" / "10_onnx_sphere_tracing.py"
    runpy.run_path(str(example))["main"](tmp_path / "field.onnx", tmp_path / "picture.png", size=96)
    picture = np.asarray(Image.open(tmp_path / "picture.png"))
    across, down = np.meshgrid(*[(np.arange(96) + 0.5) / 48 - 1] * 2)
    hit = (picture < 255).any(axis=2)
    disc = across**2 + down**2 < 0.5**2
    assert (hit ^ disc).sum() < 0.02 * disc.sum()
    inner = across**2 + down**2 < 0.45**2
    normals = np.stack([across, -np.sqrt(0.25 - np.where(inner, across**2 + down**2, 0)), -down], axis=2) / 0.5
    shown = picture[inner].astype(float) / 127.5 - 1
    cosine = (shown * normals[inner]).sum(axis=1) / np.linalg.norm(shown, axis=1)
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 3


def test_the_command_writes_the_field_of_a_run(trained_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture):
    main(["export", "--load-config", str(trained_run.config), "--output-dir", str(tmp_path), "--format", "onnx"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "cameras_refined.npz",
        "field.onnx",
        "poses.npy",
        "transforms.json",
    ]
    assert "field.onnx" in capsys.readouterr().out
    scene = read_scene(trained_run.scene)
    model = onnxruntime.InferenceSession(tmp_path / "field.onnx")
    facts = model.get_modelmeta().custom_metadata_map
    assert facts["units"] == "the data's units" and facts["precision"] == "float32" and facts["format_version"] == "1"
    np.testing.assert_allclose(json.loads(facts["sphere_center"]), scene.world_from_unit[:3, 3])
    assert json.loads(facts["sphere_radius"]) == pytest.approx(float(scene.world_from_unit[0, 0]))
    sdf = world_sdf(load_run(trained_run.config))
    points = points_around(sdf)
    found, _ = model.run(None, {"points": points})
    assert np.abs(found - sdf(points)[0]).max() < 1e-5 * 2 * sdf.radius


def test_tinycudanns_tables_are_refused():
    field = PmniField(PmniFieldConfig(encoding="dense", **SMALL))
    assert isinstance(field.geometry, EncodedSdf)
    field.geometry.levels = LevelEncoding((4, 8), 2)
    with pytest.raises(PmniError, match="tinycudann.*hash-implementation torch"):
        onnx_field(WorldSdf(field, np.eye(4)), "mm")


def test_without_onnx_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(PmniError, match=r"pip install 'pmni-nerfstudio\[onnx\]'"):
        require_onnx()

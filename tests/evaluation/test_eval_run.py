# SPDX-License-Identifier: Apache-2.0
"""Metrics of trained runs: `pmni eval --load-config`, `ns-eval` and the training curves agree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.training import make_config, set_up
from nerfstudio.engine.trainer import Trainer
from skimage.measure import marching_cubes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.data.images import read_normals
from pmni_nerfstudio.data.result_files import read_mesh
from pmni_nerfstudio.evaluation.ground_truth import read_ground_truth
from pmni_nerfstudio.export.field_volume import read_field_volume
from pmni_nerfstudio.geometry.ray_casting import RayCaster
from pmni_nerfstudio.geometry.transforms import scale_of, transform_points


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run of 40 steps with given poses and one held-out view, with training curves."""
    folder = tmp_path_factory.mktemp("trained")
    SynthCommand(out=folder / "scene", views=6, width=48, height=40, mesh_resolution=48).main()
    scene = {"pipeline__datamanager__dataparser__exclude_views": (2,), "steps_per_eval_image": 20}
    trainer = set_up(make_config("pmni-calibrated", folder / "scene", folder, 41, **scene))
    trainer.train()
    return trainer


def evaluate(trainer: Trainer, out: Path, *options: str) -> dict:
    config = trainer.config.get_base_dir() / "config.yml"
    main(["eval", "--load-config", str(config), "--output-dir", str(out), "--resolution", "128", *options])
    return json.loads((out / "metrics.json").read_text())


def test_a_run_has_the_same_metrics_as_with_ns_eval(
    trained: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    record = evaluate(trained, tmp_path)
    assert record["method"] == "pmni-calibrated" and record["aligned"] is False and record["similarity"] is None
    assert [view["held_out"] for view in record["views"]] == [False, False, True, False, False, False]
    assert record["views"][2]["rot_deg"] is None and record["views"][1]["rot_deg"] < 1e-4
    assert record["normals"]["held_out_mae_deg"] == pytest.approx(record["views"][2]["mae_deg"])
    own = [view["mae_deg"] for view in record["views"] if not view["held_out"]]
    assert record["normals"]["mae_deg"] == pytest.approx(np.mean(own)) and max(own) < 20
    assert "held-out views" in capsys.readouterr().out
    # ns-eval uses the held-out views only
    stock = trained.pipeline.get_average_eval_image_metrics()
    assert stock["normal_mae_deg"] == pytest.approx(record["normals"]["held_out_mae_deg"], rel=1e-3)
    assert stock["mask_iou"] == pytest.approx(record["views"][2]["mask_iou"], rel=1e-6)
    # ns-eval extracts a mesh of 512 cells instead of 128
    assert stock["chamfer"] == pytest.approx(record["surface"]["chamfer"], rel=0.05)
    assert stock["rot_deg"] < 1e-4 and stock["position"] == pytest.approx(record["poses"]["position"], abs=1e-4)


def test_the_result_is_written_beside_the_metrics(trained: Trainer, tmp_path: Path):
    evaluate(trained, tmp_path)
    truth = read_ground_truth(trained.config.data / "truth")
    poses = np.load(tmp_path / "poses.npy")
    true_rotations = truth.world_from_unit[:3, :3] / truth.scale @ truth.c2w[:, :3, :3]
    np.testing.assert_allclose(poses[:, :3, :3], true_rotations, atol=1e-6)
    for view in range(6):
        rendered = read_normals(tmp_path / "normal_camera_space" / f"{view:02d}.exr")
        seen, mask = (rendered != 0).any(axis=-1), truth.masks[view]
        assert (seen & mask).sum() > 0.9 * (seen | mask).sum()
    # The surface of the field's volume, where its values change their sign, is the mesh.
    volume = read_field_volume(tmp_path / "field_volume.npz")
    vertices = marching_cubes(volume.values.astype(np.float32), 127.5)[0]
    mesh = read_mesh(tmp_path / "mesh.ply")
    apart = RayCaster(mesh).distance(transform_points(volume.world_from_voxel, vertices))
    voxel = scale_of(volume.world_from_voxel)
    assert max(volume.values.shape) == 128 and apart.mean() < 0.1 * voxel and apart.max() < voxel
    # A mesh from a file has no field, and an earlier one is removed.
    main(
        [
            "eval",
            "--mesh",
            str(tmp_path / "mesh.ply"),
            "--data",
            str(trained.config.data),
            "--output-dir",
            str(tmp_path),
        ]
    )
    assert not (tmp_path / "field_volume.npz").exists()
    assert {"mesh.ply", "cameras_refined.npz", "transforms.json", "views.csv"} <= {p.name for p in tmp_path.iterdir()}


def test_training_curves_include_ground_truth_metrics(trained: Trainer):
    events = EventAccumulator(str(trained.config.get_base_dir()))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {f"Train Loss Dict/{name}_loss" for name in ("normal", "mask", "eikonal")} <= scalars
    measured = {"chamfer", "chamfer_pct", "fscore", "rot_deg", "position", "normal_mae_deg"}
    assert {f"Eval Images Metrics/{name}" for name in measured} <= scalars
    curve = [event.value for event in events.Scalars("Eval Images Metrics/chamfer")]
    truth = trained.pipeline.ground_truth_metrics(trained.pipeline.ground_truth, 128, 2000)
    assert len(curve) == 2 and curve[-1] == pytest.approx(truth["chamfer"], rel=0.3)
    assert {f"Eval Images/{name}" for name in ("normals", "angular_error", "depth")} <= set(events.Tags()["images"])


def test_an_invalid_ground_truth_is_reported_without_stopping_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    SynthCommand(out=tmp_path / "scene", views=5, width=40, height=36, mesh_resolution=32).main()
    (tmp_path / "scene" / "truth" / "truth.npz").write_bytes(b"junk")
    trainer = set_up(make_config("pmni-calibrated", tmp_path / "scene", tmp_path, 12, steps_per_eval_image=5))
    trainer.train()
    assert "no comparison with ground truth" in capsys.readouterr().out
    assert "chamfer" not in trainer.pipeline.get_average_eval_image_metrics()

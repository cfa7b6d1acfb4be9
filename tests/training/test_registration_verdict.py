# SPDX-License-Identifier: Apache-2.0
"""Consequences of a registration's verdict and of its intrinsics: exit codes, training, evaluation and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers.registration import true_surface
from helpers.training import make_config, set_up

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.data.camera_files import read_cameras
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation import evaluate
from pmni_nerfstudio.evaluation.metrics_file import METRICS_FILE
from pmni_nerfstudio.evaluation.reconstruction import reconstruction_from_run
from pmni_nerfstudio.evaluation.stored_result import read_result
from pmni_nerfstudio.export.cameras import with_result_intrinsics
from pmni_nerfstudio.geometry.reflectance_bias import COEFFICIENTS, ReflectanceBias
from pmni_nerfstudio.registration import console
from pmni_nerfstudio.registration.confidence import ViewAgreement
from pmni_nerfstudio.registration.intrinsics import RefinedIntrinsics, unchanged_intrinsics
from pmni_nerfstudio.registration.pipeline import Registration
from pmni_nerfstudio.registration.reflectance import EstimatedBias, unknown_bias
from pmni_nerfstudio.registration.statistics import STATISTICS, read_verdict
from pmni_nerfstudio.registration.verdict import Verdict, VerdictName, ViewStatus
from pmni_nerfstudio.training import initialization

VIEWS = 6
REASON = "no surface <was> found that the views agree on"
CORRECTED = RefinedIntrinsics(1.1, (0.01, -0.02), 0.01, (0.001, 0.001), True, True, "why", "corrected by 10%")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    SynthCommand(out=folder, shape="blob", views=VIEWS, width=48, height=40, mesh_resolution=48).main()
    return folder


def registration(
    scene: Path,
    verdict: VerdictName,
    intrinsics: RefinedIntrinsics | None = None,
    reflectance: EstimatedBias | None = None,
) -> Registration:
    """A right result with any verdict; all views but the first and the last are ok."""
    views = [ViewStatus("ok") for _ in range(VIEWS)]
    views[0], views[-1] = ViewStatus("relocated", "it was elsewhere"), ViewStatus("left out", "it fits nowhere")
    reasons = () if verdict == "ok" else (REASON, "another reason")
    c2w = read_scene(scene).c2w
    assert c2w is not None
    agreement = ViewAgreement(*np.full((4, VIEWS), 0.9))
    unchanged = unchanged_intrinsics(None, "they fit")
    return Registration(
        c2w, true_surface(), Verdict(verdict, reasons, tuple(views)), agreement, intrinsics or unchanged, reflectance or unknown_bias("why"),
        "rough poses", (), 0.1, {"pairwise": 1.0},
    )  # fmt: skip


@pytest.fixture
def fake(scene: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes every registration from now on return a result; the list of calls."""

    def replace(
        verdict: VerdictName, intrinsics: RefinedIntrinsics | None = None, reflectance: EstimatedBias | None = None
    ) -> list[int]:
        calls: list[int] = []
        found = registration(scene, verdict, intrinsics, reflectance)

        def registered(*_: Any) -> Registration:
            calls.append(1)
            return found

        monkeypatch.setattr(console, "register_with_progress", registered)
        monkeypatch.setattr(initialization, "register_with_progress", registered)
        return calls

    return replace


# ---- pmni register --------------------------------------------------------------------------------------------------


def test_a_failed_registration_is_written_and_exits_with_2(scene: Path, fake, tmp_path: Path, capsys):
    fake("failed")
    with pytest.raises(SystemExit) as stop:
        main(["register", str(scene), "--output-dir", str(tmp_path)])
    assert stop.value.code == 2
    names = {"poses.npy", "cameras_refined.npz", "transforms.json", "surface.ply", STATISTICS, "registration.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == len(names)
    last = err.splitlines()[-1]
    assert last.startswith(f"error: {scene}: the registration failed") and f"written to {tmp_path}" in last
    written = json.loads((tmp_path / STATISTICS).read_text())
    assert (written["verdict"], written["reasons"][0]) == ("failed", REASON)
    assert [view["status"] for view in written["views"]] == ["relocated", *["ok"] * (VIEWS - 2), "left out"]


@pytest.mark.parametrize("verdict", ["ok", "doubtful"])
def test_other_verdicts_exit_with_0(verdict: VerdictName, scene: Path, fake, tmp_path: Path):
    fake(verdict)
    main(["register", str(scene), "--output-dir", str(tmp_path)])
    assert json.loads((tmp_path / STATISTICS).read_text())["verdict"] == verdict


def test_written_cameras_have_the_refined_intrinsics(scene: Path, fake, tmp_path: Path):
    fake("ok", CORRECTED)
    main(["register", str(scene), "--output-dir", str(tmp_path)])
    given = read_scene(scene).K
    K, _, _ = read_cameras(tmp_path / "cameras_refined.npz", VIEWS)
    np.testing.assert_allclose(K, CORRECTED.corrected(given), rtol=1e-6, atol=1e-9)
    frame = json.loads((tmp_path / "transforms.json").read_text())["frames"][0]
    assert frame["fl_x"] == pytest.approx(1.1 * given[0, 0, 0]) and frame["cx"] == pytest.approx(K[0, 0, 2] + 0.5)
    written = json.loads((tmp_path / STATISTICS).read_text())["intrinsics"]
    assert written["given"]["fl_x"] == pytest.approx(given[0, 0, 0], abs=1e-3)
    assert written["refined"]["fl_x"] == pytest.approx(K[0, 0, 0], abs=1e-3)
    # What is read back from the folder, by `pmni view` and `pmni eval`, has the refined intrinsics, too.
    shown = read_result(tmp_path).scene
    assert shown is not None
    np.testing.assert_allclose(shown.K, K, rtol=1e-6, atol=1e-9)
    mesh = str(tmp_path / "surface.ply")
    with patch.object(evaluate, "evaluate", wraps=evaluate.evaluate) as evaluated:
        main(["eval", "--mesh", mesh, "--poses", str(tmp_path / "poses.npy"), "--data", str(scene)])
    np.testing.assert_allclose(evaluated.call_args.args[1].K, K, rtol=1e-6, atol=1e-9)


def test_unchanged_intrinsics_are_the_scene_s(scene: Path, fake, tmp_path: Path):
    fake("ok")
    main(["register", str(scene), "--output-dir", str(tmp_path)])
    given = read_scene(scene)
    assert with_result_intrinsics(given, tmp_path) is given
    assert with_result_intrinsics(given, tmp_path / "elsewhere") is given


# ---- ns-train -------------------------------------------------------------------------------------------------------


def with_registration(scene: Path, out: Path, **changes: Any):
    return make_config("pmni", scene, out, 4, pipeline__model__registration=True, **changes)


def test_training_stops_at_a_failed_registration_unless_told_otherwise(scene: Path, fake, tmp_path: Path, capsys):
    calls = fake("failed")
    for _ in range(2):  # registered, then read from the cache
        with pytest.raises(SystemExit) as stop:
            set_up(with_registration(scene, tmp_path))
        assert stop.value.code == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and REASON in lines[0]
        for words in ("--pipeline.model.train-anyway True", "initial-poses none", "pmni-calibrated", ".npz"):
            assert words in lines[0]
    assert calls == [1]
    trainer = set_up(with_registration(scene, tmp_path, pipeline__model__train_anyway=True))
    trainer.train()
    assert calls == [1] and trainer.pipeline.model.inlier_indices() == list(range(VIEWS - 1))
    assert json.loads((trainer.base_dir / STATISTICS).read_text())["verdict"] == "failed"


def test_evaluation_and_report_show_the_verdict(scene: Path, fake, tmp_path: Path, capsys):
    fake("doubtful")
    trainer = set_up(with_registration(scene, tmp_path))
    trainer.train()
    (trainer.base_dir / STATISTICS).unlink()  # a run is known by its config and checkpoint
    out = tmp_path / "out"
    capsys.readouterr()
    main(
        ["eval", "--load-config", str(trainer.base_dir / "config.yml"), "--output-dir", str(out), "--resolution", "48"]
    )
    shown = capsys.readouterr().out
    assert "Registration: doubtful; relocated: 00; left out: 05" in shown and f"  {REASON}" in shown.splitlines()
    record = json.loads((out / METRICS_FILE).read_text())["registration"]
    assert record["verdict"] == "doubtful" and record["reasons"] == [REASON, "another reason"]
    main(["report", str(out)])
    page = (out / "report.html").read_text()
    assert "Verdict: <b>doubtful</b>" in page and "no surface &lt;was&gt; found" in page and "it fits nowhere" in page


def test_evaluation_of_a_mesh_reads_the_registration_beside_it(scene: Path, fake, tmp_path: Path, capsys):
    fake("ok")
    main(["register", str(scene), "--output-dir", str(tmp_path)])
    options = ["--mesh", str(tmp_path / "surface.ply"), "--poses", str(tmp_path / "poses.npy"), "--data", str(scene)]
    main(["eval", *options, "--output-dir", str(tmp_path / "out")])
    assert "Registration: ok; relocated: 00; left out: 05" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / METRICS_FILE).read_text())["registration"]["verdict"] == "ok"
    (tmp_path / STATISTICS).write_text('{"verdict": "fine"}')
    with pytest.raises(PmniError, match=f"{STATISTICS}: holds no verdict"):
        read_verdict(tmp_path)
    assert read_verdict(scene) is None


def test_training_uses_refined_intrinsics_everywhere(scene: Path, fake, tmp_path: Path):
    fake("ok", CORRECTED)
    expected = CORRECTED.corrected(read_scene(scene).K)
    first = set_up(with_registration(scene, tmp_path))
    check_intrinsics(first.pipeline, expected)
    rays = first.pipeline.datamanager.train_ray_generator(torch.tensor([[1, 10, 20]]))
    x, y = (20 - expected[1, 0, 2]) / expected[1, 0, 0], (10 - expected[1, 1, 2]) / expected[1, 1, 1]
    assert float(rays.metadata["directions_norm"]) == pytest.approx(np.sqrt(x * x + y * y + 1), rel=1e-6)
    assert first.controller is not None and first.controller.pose_steps is not None
    first.train()
    resumed = set_up(with_registration(scene, tmp_path, load_dir=first.checkpoint_dir, timestamp="resumed"))
    check_intrinsics(resumed.pipeline, expected)
    assert (resumed.base_dir / STATISTICS).is_file()
    evaluated, result = reconstruction_from_run(first.base_dir / "config.yml", 32, "cpu")
    np.testing.assert_allclose(evaluated.K, expected, rtol=1e-6)
    assert result.registration is not None and result.registration["verdict"] == "ok"


def test_training_uses_normals_without_reflectance_bias_everywhere(scene: Path, fake, tmp_path: Path):
    bias = ReflectanceBias((0.05,) * COEFFICIENTS)
    fake("ok", CORRECTED, EstimatedBias(bias, 2.9, 0.1, (), "they agree"))
    given = read_scene(scene)
    expected = np.stack([bias.removed(n, v, K) for n, v, K in zip(given.normals, given.valid, given.K)])
    assert np.abs(expected - given.normals).max() > 0.04
    first = set_up(with_registration(scene, tmp_path))
    check_normals(first.pipeline, expected)
    assert first.controller is not None and first.controller.pose_steps is not None
    np.testing.assert_allclose(first.controller.pose_steps.views.normals, expected[:-1], atol=2e-3)
    first.train()
    resumed = set_up(with_registration(scene, tmp_path, load_dir=first.checkpoint_dir, timestamp="resumed"))
    check_normals(resumed.pipeline, expected)
    check_intrinsics(resumed.pipeline, CORRECTED.corrected(given.K))


def check_normals(pipeline: Any, normals: np.ndarray) -> None:
    """Check model, losses, scene and batches."""
    model, datamanager = pipeline.model, pipeline.datamanager
    np.testing.assert_array_equal(model.views.normals, normals)
    np.testing.assert_array_equal(model.supervision._normals.numpy(), normals)
    np.testing.assert_array_equal(pipeline._scene.normals, normals)
    for dataset in (datamanager.train_dataset, datamanager.eval_dataset):
        np.testing.assert_array_equal(dataset.maps["normal"].numpy(), normals)
    _, batch = datamanager.next_train(0)
    view, row, column = batch["indices"].T.numpy()
    np.testing.assert_array_equal(batch["normal"].cpu().numpy(), normals[view, row, column].astype(np.float32))


def check_intrinsics(pipeline: Any, K: np.ndarray) -> None:
    """Check model, losses, scene and nerfstudio's cameras."""
    model, datamanager = pipeline.model, pipeline.datamanager
    np.testing.assert_allclose(model.views.K, K, rtol=1e-6)
    np.testing.assert_allclose(model.supervision._K, K, rtol=1e-6)
    np.testing.assert_allclose(pipeline._scene.K, K, rtol=1e-6)
    for dataset in (datamanager.train_dataset, datamanager.eval_dataset):
        cameras = dataset.cameras
        np.testing.assert_allclose(cameras.fx[:, 0], K[:, 0, 0], rtol=1e-6)
        np.testing.assert_allclose(cameras.cy[:, 0], K[:, 1, 2] + 0.5, rtol=1e-6)
    assert float(datamanager.fixed_indices_eval_dataloader.cameras.cx[1, 0]) == pytest.approx(K[1, 0, 2] + 0.5)

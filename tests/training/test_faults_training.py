# SPDX-License-Identifier: Apache-2.0
"""Faults during training: interruption, values that are not finite, failed checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from helpers.training import make_config, set_up
from nerfstudio.engine.trainer import Trainer

from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.model import losses
from pmni_nerfstudio.training import trainer as trainer_module

Losses = Dict[int, Dict[str, float]]


def train(trainer: Trainer) -> Losses:
    """Train; the losses by step and name."""
    losses_by_step: Losses = {}
    iteration = trainer.train_iteration

    def recorded(step: int):
        out = iteration(step)
        losses_by_step[step] = {name: float(loss) for name, loss in out[1].items()}
        return out

    trainer.train_iteration = recorded
    trainer.train()
    return losses_by_step


def max_difference(a: Losses, b: Losses) -> float:
    """Maximum difference of the losses over the common steps."""
    common = a.keys() & b.keys()
    assert common
    return max(abs(a[step][name] - b[step][name]) for step in common for name in a[step])


def tensors_of(trainer: Trainer) -> Dict[str, torch.Tensor]:
    return {name: value for name, value in trainer.pipeline.model.state_dict().items() if torch.is_tensor(value)}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small views with pose errors of 4 deg."""
    folder = tmp_path_factory.mktemp("scene")
    SynthCommand(out=folder, views=8, width=64, height=54, mesh_resolution=32, rotation_noise_deg=4, jitter=1).main()
    return folder


def configured(scene: Path, out: Path, name: str, **changes: Any):
    """Configuration of 40 steps with pose steps, convergence checks, evaluation images, and all checkpoints kept."""
    options: Dict[str, Any] = {"timestamp": name, "steps_per_save": 15, "save_only_latest_checkpoint": False}
    options |= {"steps_per_eval_image": 15, "pipeline__model__steps_per_pose_step": 10}
    options |= {"pipeline__model__converged_normals_deg": 1e-9, "pipeline__model__schedule_steps": 20}
    options |= {"pipeline__model__steps_per_grid_update": 10}
    return make_config("pmni", scene, out, 40, **(options | changes))


@pytest.mark.slow
@pytest.mark.parametrize("registration", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(registration: bool, scene: Path, tmp_path: Path):
    """A resumed run continues exactly, and a repeated run is identical."""
    options = {"pipeline__model__registration": registration}
    whole = set_up(configured(scene, tmp_path, "whole", **options))
    first = train(whole)
    assert max_difference(first, train(set_up(configured(scene, tmp_path, "again", **options)))) == 0
    resumed = set_up(configured(scene, tmp_path, "on", load_dir=whole.checkpoint_dir, load_step=15, **options))
    second = train(resumed)
    assert set(second) == set(range(16, 40))
    assert max_difference(first, second) <= 1e-6
    for name, value in tensors_of(whole).items():
        torch.testing.assert_close(tensors_of(resumed)[name], value, msg=name)


def train_until_error(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> str:
    """Train until the expected failure; its error message."""
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_training_by_name(
    value: float, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    trainer = set_up(configured(scene, tmp_path, "t"))
    real, calls = losses.eikonal_loss, []

    def injected(gradients: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return real(gradients) * (value if len(calls) == 8 else 1.0)

    monkeypatch.setattr(losses, "eikonal_loss", injected)
    line = train_until_error(trainer, capsys)
    assert "step 7" in line and "eikonal_loss" in line and "normal_loss" not in line
    check_saved_state(trainer, 6)


def test_a_gradient_that_is_not_finite_stops_training_before_the_step(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trainer = set_up(configured(scene, tmp_path, "t"))
    (parameter, *_) = trainer.pipeline.model.get_param_groups()["sdf"]
    calls: List[int] = []

    def injected(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * float("nan") if len(calls) == 5 else gradient

    parameter.register_hook(injected)
    line = train_until_error(trainer, capsys)
    assert "step 4" in line and "gradient of sdf" in line
    check_saved_state(trainer, 3)


def check_saved_state(trainer: Trainer, step: int) -> None:
    """Check that the state before the failed step, from which training can continue, and its batch were saved."""
    state = torch.load(trainer.checkpoint_dir / f"step-{step:09d}.ckpt", weights_only=True)
    values = [value for value in state["pipeline"].values() if torch.is_tensor(value)]
    assert values and all(bool(value.isfinite().all()) for value in values)
    failed = torch.load(trainer.base_dir / trainer_module.NOT_FINITE_FILE, weights_only=True)
    assert failed["step"] == step + 1 and {"normal", "mask", "indices"} <= set(failed["batch"])
    assert {"normal_loss", "eikonal_loss"} <= set(failed["losses"])


def test_gradients_are_clipped_as_configured(scene: Path, tmp_path: Path):
    """The norm is clipped to 1 for the field and 0.1 for poses, whatever factor scales the loss."""
    config = configured(scene, tmp_path, "t")
    limits = {name: part["optimizer"].max_norm for name, part in config.optimizers.items()}
    assert limits["sdf"] == 1.0 and limits["pose_rotation"] == limits["pose_translation"] == 0.1
    trainer = set_up(config)
    scaled = trainer.pipeline.model.get_loss_dict
    trainer.pipeline.model.get_loss_dict = lambda *a, **k: {n: 1e4 * v for n, v in scaled(*a, **k).items()}
    trainer.train_iteration(0)
    for name in ("sdf", "pose_rotation", "pose_translation"):
        gradients = [p.grad for p in trainer.optimizers.parameters[name] if p.grad is not None]
        assert torch.nn.utils.get_total_norm(gradients) == pytest.approx(limits[name], rel=1e-3)


def test_a_failed_checkpoint_leaves_the_previous_one_intact(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = set_up(configured(scene, tmp_path, "t", save_only_latest_checkpoint=True))
    trainer.save_checkpoint(1)

    def interrupted(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(OSError, match="No space"):
        trainer.save_checkpoint(2)
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000001.ckpt"]
    monkeypatch.undo()
    trainer.save_checkpoint(3)
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000003.ckpt"]
    assert not list(trainer.base_dir.glob(".checkpoint-*"))

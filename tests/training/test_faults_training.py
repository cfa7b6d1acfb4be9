# SPDX-License-Identifier: Apache-2.0
"""What may happen to a training run: it is cut off, its numbers stop being numbers, it is run again."""

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
    """Trains; losses by step and name."""
    found: Losses = {}
    iteration = trainer.train_iteration

    def recorded(step: int):
        out = iteration(step)
        found[step] = {name: float(loss) for name, loss in out[1].items()}
        return out

    trainer.train_iteration = recorded
    trainer.train()
    return found


def difference(some: Losses, others: Losses) -> float:
    """The largest over the steps that both have."""
    common = some.keys() & others.keys()
    assert common
    return max(abs(some[step][name] - others[step][name]) for step in common for name in some[step])


def tensors_of(trainer: Trainer) -> Dict[str, torch.Tensor]:
    return {name: value for name, value in trainer.pipeline.model.state_dict().items() if torch.is_tensor(value)}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small views whose poses are 4 deg off."""
    folder = tmp_path_factory.mktemp("scene")
    SynthCommand(out=folder, views=8, width=64, height=54, mesh_resolution=32, rotation_noise_deg=4, jitter=1).main()
    return folder


def configured(scene: Path, out: Path, name: str, **changes: Any):
    """60 steps of registered poses, with pose steps, checks for convergence, pictures, and all checkpoints kept."""
    kept: Dict[str, Any] = {"timestamp": name, "steps_per_save": 25, "save_only_latest_checkpoint": False}
    kept |= {"steps_per_eval_image": 20, "pipeline__model__steps_per_pose_step": 15}
    kept |= {"pipeline__model__converged_normals_deg": 1e-9, "pipeline__model__schedule_steps": 30}
    return make_config("pmni", scene, out, 60, **(kept | changes))


@pytest.mark.slow
@pytest.mark.parametrize("registration", [False, True])
def test_a_resumed_run_is_the_run_that_was_never_stopped(registration: bool, scene: Path, tmp_path: Path):
    """To the last bit, and so is a run that is made twice."""
    how = {"pipeline__model__registration": registration}
    whole = set_up(configured(scene, tmp_path, "whole", **how))
    first = train(whole)
    assert difference(first, train(set_up(configured(scene, tmp_path, "again", **how)))) == 0
    resumed = set_up(configured(scene, tmp_path, "on", load_dir=whole.checkpoint_dir, load_step=25, **how))
    second = train(resumed)
    assert set(second) == set(range(26, 60))
    assert difference(first, second) <= 1e-6
    for name, value in tensors_of(whole).items():
        torch.testing.assert_close(tensors_of(resumed)[name], value, msg=name)


def stops(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> str:
    """Trains to the end that must come; what was said."""
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_training_by_name(
    value: float, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    trainer = set_up(configured(scene, tmp_path, "t"))
    real, calls = losses.eikonal_loss, []

    def injected(gradients: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return real(gradients) * (value if len(calls) == 8 else 1.0)

    monkeypatch.setattr(losses, "eikonal_loss", injected)
    line = stops(trainer, capsys)
    assert "step 7" in line and "eikonal_loss" in line and "normal_loss" not in line
    check_what_is_left(trainer, 6)


def test_a_gradient_that_is_no_number_ends_training_before_the_step(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trainer = set_up(configured(scene, tmp_path, "t"))
    (parameter, *_) = trainer.pipeline.model.get_param_groups()["sdf"]
    calls: List[int] = []

    def injected(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * float("nan") if len(calls) == 5 else gradient

    parameter.register_hook(injected)
    line = stops(trainer, capsys)
    assert "step 4" in line and "gradient of sdf" in line
    check_what_is_left(trainer, 3)


def check_what_is_left(trainer: Trainer, step: int) -> None:
    """The state before the step that went wrong, from which training goes on, and its batch."""
    state = torch.load(trainer.checkpoint_dir / f"step-{step:09d}.ckpt", weights_only=True)
    values = [value for value in state["pipeline"].values() if torch.is_tensor(value)]
    assert values and all(bool(value.isfinite().all()) for value in values)
    left = torch.load(trainer.base_dir / trainer_module.BATCH_FILE, weights_only=True)
    assert left["step"] == step + 1 and {"normal", "mask", "indices"} <= set(left["batch"])
    assert {"normal_loss", "eikonal_loss"} <= set(left["losses"])


def test_gradients_are_clipped_as_configured(scene: Path, tmp_path: Path):
    """The field's to 1, the poses' to .1, whatever the loss is multiplied by."""
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


def test_a_checkpoint_that_can_not_be_written_leaves_the_one_before(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = set_up(configured(scene, tmp_path, "t", save_only_latest_checkpoint=True))
    trainer.save_checkpoint(1)

    def cut_off(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(OSError, match="No space"):
        trainer.save_checkpoint(2)
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000001.ckpt"]
    monkeypatch.undo()
    trainer.save_checkpoint(3)
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000003.ckpt"]
    assert not list(trainer.base_dir.glob(".checkpoint-*"))

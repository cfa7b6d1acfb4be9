"""Training in blocks, from ns-train's trainer to the evaluation of the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.training import make_config, set_up
from nerfstudio.engine.trainer import Trainer, TrainerConfig

from pmni_nerfstudio import cli
from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.large_scenes import block as block_module
from pmni_nerfstudio.large_scenes import running
from pmni_nerfstudio.large_scenes.running import BlockResult, block_folder
from pmni_nerfstudio.training.trained_run import load_run


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks") / "scene"
    SynthCommand(out=folder, shape="blob", views=8, width=64, height=54, mesh_resolution=64).main()
    return folder


def config_of(scene: Path, out: Path, **changes: Any) -> TrainerConfig:
    options = {"pipeline__model__blocks": 2, "pipeline__model__sdf_field__grid_vertices": (17, 33, 65)}
    options |= {"pipeline__model__start": "hull", "pipeline__model__hull_resolution": 65}
    options |= {"pipeline__model__grid_resolution": 32, "steps_per_eval_image": 1000}
    return make_config("pmni-calibrated", scene, out, 30, **{**options, **changes})


@pytest.fixture(scope="module")
def started() -> Iterator[list[int]]:
    """Blocks are reconstructed in this process instead of one of their own, on coarser grids; their indices."""
    blocks: list[int] = []

    def run_here(job: int, out: Path, *_: Any) -> BlockResult:
        blocks.append(job)
        block_module.reconstruct(block_folder(out, job))
        return BlockResult(job, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "run_block", run_here)
        patch.setattr(block_module, "_LEVELS", (49, 65))
        yield blocks


@pytest.fixture(scope="module")
def trained(scene: Path, started: list[int], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run in two blocks."""
    out = tmp_path_factory.mktemp("run")
    trainer = set_up(config_of(scene, out))
    trainer.train()
    assert sorted(started) == [0, 1]
    return Trained(out, trainer)


@dataclass(frozen=True)
class Trained:
    """A run and the folder of its experiment."""

    out: Path
    trainer: Trainer

    @property
    def config(self) -> Path:
        return self.out / "test" / "pmni-calibrated" / "run" / "config.yml"


def test_a_run_in_two_blocks_is_evaluated_like_any_other(trained: Trained, tmp_path: Path) -> None:
    cli.main(["eval", "--load-config", str(trained.config), "--output-dir", str(tmp_path), "--resolution", "96"])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["mesh"]["watertight"] and metrics["mesh"]["components"] == 1
    assert metrics["surface"]["chamfer_pct"] < 0.25
    assert metrics["normals"]["mae_deg"] < 4
    loaded: Any = load_run(trained.config, "cpu").pipeline.model
    model: Any = trained.trainer.pipeline.model
    np.testing.assert_array_equal(loaded.field.volume(17).numpy(), model.field.volume(17).numpy())


def test_finished_blocks_are_taken_up(scene: Path, trained: Trained, started: list[int]) -> None:
    before = len(started)
    set_up(config_of(scene, trained.out, timestamp="again")).train()
    assert len(started) == before
    (lost,) = trained.out.glob("test/pmni-calibrated/blocks/*/001/field.npy")
    lost.unlink()
    set_up(config_of(scene, trained.out, timestamp="third")).train()
    assert started[before:] == [1]
    folder = trained.config.parent / "nerfstudio_models"
    set_up(config_of(scene, trained.out, timestamp="resumed", load_dir=folder)).train()
    assert started[before:] == [1], "a resumed run has nothing left to train"


def test_masks_of_a_block_say_nothing_about_other_blocks(scene: Path, trained: Trained) -> None:
    whole = read_scene(scene)
    folders = sorted(trained.out.glob("test/pmni-calibrated/blocks/*/0*"))
    assert len(folders) == 2
    shown = {name: 0 for name in whole.names}
    for folder in folders:
        part = read_scene(folder / "scene")
        assert part.masks[0].size < whole.masks[0].size
        corner = np.load(folder / "scene" / "cropped.npz")["corner"]
        for view, name in enumerate(part.names):
            rows = slice(corner[view, 1], corner[view, 1] + part.height)
            columns = slice(corner[view, 0], corner[view, 0] + part.width)
            mask = whole.masks[whole.names.index(name)][rows, columns]
            assert part.unknown is not None
            np.testing.assert_array_equal(part.masks[view] | part.unknown[view], mask)
            shown[name] += int(part.masks[view].sum())
    for name, mask in zip(whole.names, whole.masks):
        assert mask.sum() <= shown[name] < 1.5 * mask.sum(), "every pixel of the object is in one block, few in both"


def test_a_block_that_fails_ends_the_run_with_its_reason(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "run_block", lambda job, *_: BlockResult(job, f"block {job}: no memory (see log)"))
    with pytest.raises(SystemExit) as error:
        set_up(config_of(scene, tmp_path))
    assert error.value.code == 1
    assert "2 of 2 blocks could not be reconstructed; block" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline__model__blocks": 0}, "blocks: 0 is out of range"),
        ({"pipeline__model__block_jobs": 0}, "block-jobs: 0 is not positive"),
        ({"pipeline__model__max_memory": "much"}, "max-memory: much is not a memory size"),
        ({"pipeline__model__start": "sphere"}, "blocks: need a surface to cut"),
    ],
)
def test_options_are_checked(
    scene: Path, tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        set_up(config_of(scene, tmp_path, **changes))
    assert message in capsys.readouterr().err

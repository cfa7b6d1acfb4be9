# SPDX-License-Identifier: Apache-2.0
"""A run's data: stored by its absolute path, found again by a relative one, and replaced by --data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.scenes import make_sphere
from helpers.trained_run import TrainedRun
from helpers.training import make_config

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.training.trained_run import load_run, read_config


def test_the_config_has_the_absolute_path_and_the_folder_of_normals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_sphere().write(tmp_path / "scene")
    shutil.copytree(tmp_path / "scene" / "normal_camera_space_GT", tmp_path / "scene" / "normal_camera_space_estimated")
    monkeypatch.chdir(tmp_path)
    config = make_config("pmni-calibrated", Path("scene"), tmp_path / "out", 1)
    config.save_config()
    manager: Any = read_config(config.get_base_dir() / "config.yml").pipeline.datamanager
    assert (manager.data or manager.dataparser.data) == tmp_path / "scene"
    assert manager.dataparser.normals_folder == "normal_camera_space_estimated"
    own: Any = config.pipeline.datamanager
    assert own.dataparser.normals_folder is None  # the running config is unchanged


def copy_with_data(run: TrainedRun, folder: Path, data: str) -> Path:
    """A copy of a run whose config names other data; returns its config.yml."""
    config = folder / "outputs" / "run" / "config.yml"
    shutil.copytree(run.config.parent, config.parent)
    text = config.read_text()
    parts = run.scene.resolve().parts
    for line in [line for line in text.splitlines() if line.strip() == f"- {parts[-1]}"]:
        indent = line[: len(line) - len(line.lstrip())]
        text = text.replace("".join(f"{indent}- {part}\n" for part in parts), f"{indent}- {data}\n")
    assert parts[-2] not in text.split("datamanager:")[1].split("model:")[0]
    config.write_text(text)
    return config


def test_data_that_has_moved(trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    config = copy_with_data(trained_run, tmp_path, "scene")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(PmniError, match="scene: the data of the run .*give its new place with --data"):
        load_run(config, "cpu")
    with pytest.raises(PmniError, match="does not exist; give the folder with the data"):
        load_run(config, "cpu", tmp_path / "none")
    run = load_run(config, "cpu", trained_run.scene)
    assert run.pipeline.datamanager.train_dataset is not None
    shutil.copytree(trained_run.scene, tmp_path / "scene")  # beside outputs/, as at training
    load_run(config, "cpu")

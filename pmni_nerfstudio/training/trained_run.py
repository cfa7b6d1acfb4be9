# SPDX-License-Identifier: Apache-2.0
"""Loading of a trained run from its config.yml and its latest checkpoint.

nerfstudio's `eval_setup` does this for `ns-eval` and `ns-export`. In addition, `load_run` selects the device, looks for
checkpoints next to the config (so that a run can be moved, or exported from another working directory), and reports what
is missing in one line where `eval_setup` fails an assertion. torch and nerfstudio, which load slowly, are imported after
the path has been checked.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pmni_nerfstudio.data.files import reason
from pmni_nerfstudio.errors import PmniError, one_line
from pmni_nerfstudio.training.config_yaml import load_config

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig
    from nerfstudio.pipelines.base_pipeline import Pipeline

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Run:
    """A trained pipeline in evaluation mode, with the files that it was loaded from."""

    config_path: Path
    config: TrainerConfig
    pipeline: Pipeline
    checkpoint: Path


def load_run(config_path: Path, device: Device = "auto", data: Path | None = None) -> Run:
    """Load a run for inference, without the samplers and optimizers of training.

    Args:
        config_path: The config.yml of the run.
        device: Device to load to; auto uses CUDA if available.
        data: Where the run's data is now; None: where it was at training.

    Raises:
        PmniError: The data, the config or the checkpoint is missing, unreadable or does not match, or the GPU's memory is too
            small.
    """
    config = read_config(config_path)
    _place_data(config_path, config, data)
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise PmniError("device: no CUDA device found; use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = latest_checkpoint(config_path.parent / config.relative_model_dir)
    state = _read_checkpoint(checkpoint)
    try:
        pipeline = config.pipeline.setup(device=device, test_mode="inference")
    except torch.cuda.OutOfMemoryError as error:
        raise PmniError(
            f"{config_path}: the run does not fit into the GPU's memory ({one_line(error)[:200]}); stop other programs "
            "that use the GPU (nvidia-smi lists them) or use --device cpu"
        ) from error
    pipeline.eval()
    try:
        pipeline.load_pipeline(state["pipeline"], state["step"])
    except RuntimeError as error:
        raise PmniError(
            f"{checkpoint}: does not match {config_path} and its data ({one_line(error)[:200]}); "
            "use the scene and the program version that the run was trained with"
        ) from error
    return Run(config_path, config, pipeline, checkpoint)


def _place_data(config_path: Path, config: TrainerConfig, data: Path | None) -> None:
    """Point a config at its data: at `data` or, if it names a relative path, at that path below a parent of the config.

    Raises:
        PmniError: There is no such folder.
    """
    manager: Any = config.pipeline.datamanager
    stored = manager.data or manager.dataparser.data
    if data is None and stored is not None:
        places = [stored] if stored.is_absolute() else [stored, *(p / stored for p in config_path.resolve().parents)]
        data = next((place for place in places if place.exists()), None)
        if data is None:
            raise PmniError(f"{stored}: the data of the run {config_path} is not there; give its new place with --data")
    elif data is not None and not data.exists():
        raise PmniError(f"{data}: does not exist; give the folder with the data of the run")
    if data is not None:
        manager.data = manager.dataparser.data = data


def read_config(path: Path) -> TrainerConfig:
    """Read the config.yml of a run.

    Raises:
        PmniError: The file is missing or is not a training config.
    """
    if path.is_dir():
        raise PmniError(f"{path}: is a folder; give the config.yml of the run")
    if not path.is_file():
        raise PmniError(f"{path}: does not exist; give the config.yml in the run's folder, which ns-train wrote")
    from nerfstudio.engine.trainer import TrainerConfig

    try:
        config = load_config(path.read_text(encoding="utf-8"))
    except Exception as error:  # PyYAML's constructors pass on the exceptions of int(), float() and classes
        raise PmniError(
            f"{path}: can't be read as a training config ({reason(error)}); give the config.yml that ns-train wrote"
        ) from error
    if not isinstance(config, TrainerConfig):
        raise PmniError(f"{path}: is not a training config; give the config.yml that ns-train wrote")
    return config


def latest_checkpoint(folder: Path) -> Path:
    """Path of the latest checkpoint in a folder.

    Raises:
        PmniError: The folder contains no checkpoint.
    """
    found = {}
    for path in folder.glob("step-*.ckpt"):
        match = re.fullmatch(r"step-(\d+)\.ckpt", path.name)
        if match:
            found[int(match[1])] = path
    if not found:
        raise PmniError(f"{folder}: contains no checkpoint (step-*.ckpt); train until the first one is saved")
    return found[max(found)]


def _read_checkpoint(path: Path) -> dict:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # a full pickle could execute code
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise PmniError(f"{path}: can't be read ({one_line(error)[:200]}); use an earlier checkpoint") from error
    if not isinstance(state, dict) or not {"pipeline", "step"} <= state.keys():
        raise PmniError(f"{path}: is not a checkpoint of nerfstudio's trainer; use an earlier checkpoint")
    return state

# SPDX-License-Identifier: Apache-2.0
"""A trained run, loaded from its config.yml and its latest checkpoint.

nerfstudio's `eval_setup` does the same for `ns-eval` and `ns-export`. Ours chooses the device, looks for checkpoints
beside the config (so that a run may be moved, or exported from another working directory), and says in one line what is
missing; `eval_setup` fails an assertion there. torch and nerfstudio are imported once the path is known to be right.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pmni_nerfstudio.data.files import reason
from pmni_nerfstudio.errors import PmniError, one_line
from pmni_nerfstudio.training.config_yaml import load_config

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig
    from nerfstudio.pipelines.base_pipeline import Pipeline

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Run:
    """A pipeline with its trained weights, in evaluation mode."""

    config_path: Path
    config: TrainerConfig
    pipeline: Pipeline
    checkpoint: Path
    step: int


def load_run(config_path: Path, device: Device = "auto") -> Run:
    """Load a run for inference: no sampler is built, nothing of training starts.

    Raises:
        PmniError: no such config, no run of this program, no checkpoint, or one that can't be read or doesn't fit,
            or the GPU is too small for it.
    """
    config = read_config(config_path)
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise PmniError("device: no CUDA device found: use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint, step = latest_checkpoint(config_path.parent / config.relative_model_dir)
    state = _read_checkpoint(checkpoint)
    try:
        pipeline = config.pipeline.setup(device=device, test_mode="inference")
    except torch.cuda.OutOfMemoryError as error:
        raise PmniError(
            f"{config_path}: the GPU's memory doesn't hold this run ({one_line(error)[:200]}): free some of it "
            "(nvidia-smi names who has it), or give --device cpu"
        ) from error
    pipeline.eval()
    try:
        pipeline.load_pipeline(state["pipeline"], state["step"])
    except RuntimeError as error:
        raise PmniError(
            f"{checkpoint}: doesn't fit {config_path} and its data ({one_line(error)[:200]}): "
            "export with the scene and the version that it was trained with"
        ) from error
    return Run(config_path, config, pipeline, checkpoint, step)


def read_config(path: Path) -> TrainerConfig:
    """Read the config.yml of a run.

    Raises:
        PmniError: it isn't there or is none.
    """
    if path.is_dir():
        raise PmniError(f"{path}: is a folder: give the run's config.yml")
    if not path.is_file():
        raise PmniError(f"{path}: does not exist: give the config.yml that ns-train wrote beside its checkpoints")
    from nerfstudio.engine.trainer import TrainerConfig

    try:
        config = load_config(path.read_text(encoding="utf-8"))
    except Exception as error:  # PyYAML's constructors raise whatever int(), float() and a class's parts do
        raise PmniError(
            f"{path}: can't be read as a run's config ({reason(error)}): give the config.yml that ns-train wrote"
        ) from error
    if not isinstance(config, TrainerConfig):
        raise PmniError(f"{path}: holds no training config: give the config.yml that ns-train wrote")
    return config


def latest_checkpoint(folder: Path) -> tuple[Path, int]:
    """The checkpoint of the highest step and that step.

    Raises:
        PmniError: there is none.
    """
    found = {}
    for path in folder.glob("step-*.ckpt"):
        match = re.fullmatch(r"step-(\d+)\.ckpt", path.name)
        if match:
            found[int(match[1])] = path
    if not found:
        raise PmniError(f"{folder}: holds no checkpoint (step-*.ckpt): let the training run to its first one")
    step = max(found)
    return found[step], step


def _read_checkpoint(path: Path) -> dict:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # a pickle could hold any program
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise PmniError(f"{path}: can't be read ({one_line(error)[:200]}): use an earlier checkpoint") from error
    if not isinstance(state, dict) or not {"pipeline", "step"} <= state.keys():
        raise PmniError(f"{path}: is no checkpoint of nerfstudio's trainer")
    return state

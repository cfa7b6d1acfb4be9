# SPDX-License-Identifier: Apache-2.0
"""Runs of nerfstudio's Trainer on small scenes, in this process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.scripts.train import _set_random_seed

from pmni_nerfstudio.pmni_config import pmni, pmni_calibrated, pmni_original

METHODS = {"pmni": pmni, "pmni-calibrated": pmni_calibrated, "pmni-original": pmni_original}


def make_config(method: str, data: Path, out: Path, steps: int, **changes: Any) -> TrainerConfig:
    """Configuration of a method for a scene; changes are given as pipeline__model__x=value.

    Registration is off unless it is turned on by a change.
    """
    config = copy.deepcopy(METHODS[method].config)
    config.data = config.pipeline.datamanager.data = data
    config.output_dir, config.experiment_name, config.timestamp = out, "test", "run"
    config.vis, config.max_num_iterations = "tensorboard", steps
    config.machine.device_type = "cpu"
    config.pipeline.model.registration = False
    for path, value in changes.items():
        *parents, name = path.split("__")
        target: Any = config
        for parent in parents:
            target = getattr(target, parent)
        assert hasattr(target, name), path
        setattr(target, name, value)
    return config


def set_up(config: TrainerConfig) -> Trainer:
    """Trainer before its first step, with the random seed and the saved configuration of ns-train."""
    _set_random_seed(config.machine.seed)
    trainer: Trainer = config.setup(local_rank=0, world_size=1)
    config.save_config()
    trainer.setup()
    return trainer

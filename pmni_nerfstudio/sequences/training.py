# SPDX-License-Identifier: Apache-2.0
"""Training of single frames in this process, one after another, as ns-train does it."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Literal, cast

from nerfstudio.configs.method_configs import all_methods
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.scripts.train import _set_random_seed
from nerfstudio.utils import writer

from pmni_nerfstudio.data.datamanager import PmniDataManagerConfig
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.model.pmni_model import PmniModel, PmniModelConfig
from pmni_nerfstudio.studies.job import config_path
from pmni_nerfstudio.training.trainer import PmniTrainerConfig

Method = Literal["pmni", "pmni-calibrated"]


def train_frame(
    method: Method,
    data: Path,
    normals_folder: str | None,
    out: Path,
    start: Path | None,
    steps: int,
    seed: int,
) -> PmniModel:
    """Train a frame in a new run folder, as `ns-train METHOD --data DATA --vis tensorboard` does.

    Args:
        method: pmni registers the frame first; pmni-calibrated keeps its poses.
        data: scene folder.
        normals_folder: name of its folder of normal maps, if it has several.
        out: folder of the run, replaced; the run's config.yml is at `studies.job.config_path`.
        start: signed distances to start from, see `PmniModelConfig.initial_sdf`.
        steps: steps of the schedule; 0: chosen from the size of the maps.
        seed: seed of registration and training.

    Returns:
        The trained model.

    Raises:
        PmniError: the frame could not be trained; the reason was printed to stderr.
    """
    config = copy.deepcopy(all_methods[method])
    run = config_path(method, out).parent
    shutil.rmtree(out, ignore_errors=True)
    manager = config.pipeline.datamanager
    assert isinstance(manager, PmniDataManagerConfig)
    config.data = manager.data = data
    manager.dataparser.normals_folder = normals_folder
    config.output_dir, config.experiment_name, config.timestamp = out, run.parent.parent.name, run.name
    config.vis, config.machine.seed, config.steps_per_save = "tensorboard", seed, 1_000_000
    model = config.pipeline.model
    assert isinstance(model, PmniModelConfig)
    model.initial_sdf, model.schedule_steps, model.registration_seed, model.train_anyway = start, steps, seed, True
    return train_run(config)


def train_run(config: TrainerConfig) -> PmniModel:
    """Train a run in this process, as ns-train does.

    Args:
        config: configuration of a method of this package, with data, place of the run and seed.

    Returns:
        The trained model.

    Raises:
        PmniError: the run could not be trained; the reason was printed to stderr.
    """
    _set_random_seed(config.machine.seed)
    # nerfstudio keeps the writers of all runs of a process, and would log each run to all earlier ones.
    writer.EVENT_WRITERS.clear()
    try:
        trainer: Trainer = config.setup(local_rank=0, world_size=1)
        cast(PmniTrainerConfig, config).save_config()
        trainer.setup()
        trainer.train()
    except SystemExit as error:
        if error.code != 1:  # Ctrl-C
            raise
        data = cast(PmniDataManagerConfig, config.pipeline.datamanager).data
        raise PmniError(f"{data}: could not be trained, for the reason in the log") from error
    trained = trainer.pipeline.model
    assert isinstance(trained, PmniModel)
    return trained

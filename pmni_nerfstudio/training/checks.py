# SPDX-License-Identifier: Apache-2.0
"""Checks of a run's paths and device before anything is written."""

from __future__ import annotations

from pathlib import Path

import torch
from nerfstudio.engine.trainer import TrainerConfig

from pmni_nerfstudio.data.dataparser import PmniDataParserConfig
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.importers.advice import check_is_scene
from pmni_nerfstudio.training.trained_run import latest_checkpoint


def check_start(config: TrainerConfig) -> None:
    """Check what a run starts from: its device, its data and the checkpoint that it continues.

    Raises:
        PmniError: There is no such device, scene or checkpoint.
    """
    if config.machine.device_type == "cuda" and not torch.cuda.is_available():
        raise PmniError("--machine.device-type: no CUDA device found; use --machine.device-type cpu")
    folder, step, file = config.load_dir, config.load_step, config.load_checkpoint
    if folder is not None:
        if not folder.is_dir():
            raise PmniError(f"--load-dir {folder}: is not a folder; give the nerfstudio_models folder of a run")
        file = latest_checkpoint(folder) if step is None else folder / f"step-{step:09d}.ckpt"
    if file is not None and not file.is_file():
        raise PmniError(f"{file}: no such checkpoint; give one that ns-train wrote")
    manager = config.pipeline.datamanager
    parser = getattr(manager, "dataparser", None)
    if isinstance(parser, PmniDataParserConfig):
        data = Path(getattr(manager, "data", None) or parser.data)
        if data == Path():
            raise PmniError("--data: is missing; give the folder of a scene")
        check_is_scene(data, config.method_name or "pmni")

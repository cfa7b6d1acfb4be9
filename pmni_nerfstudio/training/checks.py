# SPDX-License-Identifier: Apache-2.0
"""Checks of a run's paths and device before anything is written."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch
from nerfstudio.engine.trainer import TrainerConfig

from pmni_nerfstudio.data.dataparser import PmniDataParserConfig
from pmni_nerfstudio.data.images import NORMAL_SUFFIXES
from pmni_nerfstudio.data.scene import default_normals_folder, is_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.importers.registry import recognize
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
        _check_data(Path(getattr(manager, "data", None) or parser.data), config.method_name or "pmni")


def _check_data(data: Path, method: str) -> None:
    """Check that a folder is a scene, or tell how to make one of it."""
    if data == Path():
        raise PmniError("--data: is missing; give the folder of a scene")
    if not data.is_dir():
        raise PmniError(
            f"{data}: {'is not a folder' if data.exists() else 'does not exist'}; give the folder of a scene"
        )
    # A scene folder with faults is read all the same, for the messages that name them.
    if is_scene(data) or (data / "mask").is_dir() and default_normals_folder(data) is not None:
        return
    source, name = data, recognize(data)
    if name is None and any(path.suffix.lower() in NORMAL_SUFFIXES for path in data.iterdir()):
        source = data.absolute().parent  # perhaps the maps themselves were given
        name = recognize(source)
    if name is None:
        return
    scene = source.absolute().with_name(f"{source.absolute().name}_scene")
    commands = ["pmni", "prepare", str(source), str(scene)], ["ns-train", method, "--data", str(scene)]
    raise PmniError(
        f"{data}: is not a scene folder, but one can be made of {source} ({name}): {' && '.join(map(shlex.join, commands))}"
    )

# SPDX-License-Identifier: Apache-2.0
"""Process that reconstructs one block: `python -m pmni_nerfstudio.large_scenes.block FOLDER`."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.data.atomic import atomic_path, write_json
from pmni_nerfstudio.data.images import open_npy
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import PmniError, exit_on_error, hide_dependency_warnings
from pmni_nerfstudio.interrupts import exit_interrupted
from pmni_nerfstudio.large_scenes.block_scenes import NORMALS
from pmni_nerfstudio.registration.alternation import AlternationSchedule, Level, alternate
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import views_of_scene
from pmni_nerfstudio.sequences.training import train_run
from pmni_nerfstudio.threads import one_thread
from pmni_nerfstudio.training.trained_run import read_config

SCENE, START, CONFIG = "scene", "start.npy", "train.yml"
"""Inputs: the block's scene, the registered surface on a grid over its cube, and the configuration of its training."""
INTEGRATED = "integrated.npy"
"""The surface integrated from the block's normals, from which training starts."""
FIELD, RECORD = "field.npy", "block.json"
"""Results: the trained field on a grid over its cube, and what is known about the training."""
_LEVELS = (129, 193)
"""Grid vertices per axis of the integration, coarse to fine."""
_ROUNDS = 2
"""Rounds of integration per level; the poses are final."""
MAX_PIXELS = 120_000
"""Approximate largest number of pixels per view that the integration uses: fewer than for the registration, whose views show
the whole object. Training uses all."""


def reconstruct(folder: Path) -> None:
    """Integrate the normals of a block to a surface, train it, and write its field.

    Raises:
        PmniError: an input is invalid, or the block has no surface, or could not be trained.
    """
    started = time.perf_counter()
    config = read_config(folder / CONFIG)
    start = integrate(folder / SCENE, np.array(open_npy(folder / START), dtype=np.float32))
    with atomic_path(folder / INTEGRATED) as path:
        np.save(path, start)
    del start
    model = train_run(config)
    field = model.field.volume(model.field.levels.vertices[-1]).cpu().numpy()
    with atomic_path(folder / FIELD) as path:
        np.save(path, field)
    record = {
        "inv_s": float(model.field.inv_s()),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": peak_memory_mb(),
    }
    write_json(folder / RECORD, record)


def integrate(scene_folder: Path, start: Float[np.ndarray, "m m m"]) -> Float[np.ndarray, "n n n"]:
    """Surface of a block from its normals, near a given one, as signed distances over its cube.

    Raises:
        PmniError: the scene is invalid, or has no surface.
    """
    scene = read_scene(scene_folder, NORMALS)
    assert scene.c2w is not None
    surface = Surface(start)
    if not surface.exists:
        raise PmniError(f"{scene_folder}: the registered surface does not reach this block; use fewer blocks")
    schedule = AlternationSchedule()
    levels = tuple(Level(resolution, _ROUNDS, pixel_normals="edges") for resolution in _LEVELS)
    views = views_of_scene(scene, max_pixels=MAX_PIXELS)
    with one_thread():
        _, surface = alternate(
            views,
            Poses.from_c2w(scene.c2w),
            replace(schedule, levels=levels, poisson=schedule.detail_poisson),
            fixed_poses=True,
            surface=surface,
        )
    if not surface.exists:
        raise PmniError(f"{scene_folder}: the normals of this block determine no surface; use fewer blocks")
    return surface.sdf


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far, in MB; None where the system does not tell."""
    # Linux's resource usage would include the peak of the parent process.
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return None if found is None else round(int(found[1]) / 1024, 1)


if __name__ == "__main__":
    hide_dependency_warnings()
    try:
        with exit_on_error():
            reconstruct(Path(sys.argv[1]))
    except KeyboardInterrupt:
        raise exit_interrupted("stopped") from None

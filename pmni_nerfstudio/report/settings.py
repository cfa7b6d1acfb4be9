# SPDX-License-Identifier: Apache-2.0
"""The settings of a run that tell most about it, for any of nerfstudio's methods."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

_DATA = "pipeline.datamanager"
_MODEL = "pipeline.model"

TELLING = (
    ("Steps at most", "max_num_iterations"),
    ("Device", "machine.device_type"),
    ("Seed", "machine.seed"),
    ("Rays a step", f"{_DATA}.train_num_rays_per_batch"),
    ("Normals folder", f"{_DATA}.dataparser.normals_folder"),
    ("Maps' scale", f"{_DATA}.dataparser.scale_factor"),
    ("Views held out", f"{_DATA}.dataparser.exclude_views"),
    ("First poses", f"{_DATA}.dataparser.initial_poses"),
    ("Pose noise, rotation (deg)", f"{_DATA}.dataparser.pose_noise_rotation_deg"),
    ("Pose noise, shift (radii)", f"{_DATA}.dataparser.pose_noise_translation"),
    ("Registration", f"{_MODEL}.registration"),
    ("Poses after it", f"{_MODEL}.registered_poses"),
    ("Pose optimiser", f"{_MODEL}.camera_optimizer.mode"),
    ("First surface", f"{_MODEL}.start"),
    ("Encoding", f"{_MODEL}.sdf_field.encoding"),
    ("Gradients", f"{_MODEL}.gradients"),
    ("Normal loss", f"{_MODEL}.normal_loss"),
    ("Weights, normals", f"{_MODEL}.loss_weights.normal"),
    ("Weights, masks", f"{_MODEL}.loss_weights.mask"),
    ("Weights, depth", f"{_MODEL}.loss_weights.depth"),
    ("Weights, eikonal", f"{_MODEL}.loss_weights.eikonal"),
    ("Least sharpness", f"{_MODEL}.inv_s_floor"),
)
"""Label and place in the config."""


def telling_settings(config: Any) -> list[tuple[str, str]]:
    """Label and value of the settings above that a run's config has and that aren't empty."""
    found = []
    for label, path in TELLING:
        value = config
        for name in path.split("."):
            value = getattr(value, name, None)
        if value not in (None, (), []):
            found.append((label, _words(value)))
    return found


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, (str, int, PurePath)) else type(value).__name__

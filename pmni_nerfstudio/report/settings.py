# SPDX-License-Identifier: Apache-2.0
"""The most important settings of a run's configuration, for any of nerfstudio's methods."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

_DATA = "pipeline.datamanager"
_MODEL = "pipeline.model"

MAIN_SETTINGS = (
    ("Maximum steps", "max_num_iterations"),
    ("Device", "machine.device_type"),
    ("Seed", "machine.seed"),
    ("Rays per step", f"{_DATA}.train_num_rays_per_batch"),
    ("Normals folder", f"{_DATA}.dataparser.normals_folder"),
    ("Scale of the maps", f"{_DATA}.dataparser.scale_factor"),
    ("Held-out views", f"{_DATA}.dataparser.exclude_views"),
    ("Initial poses", f"{_DATA}.dataparser.initial_poses"),
    ("Pose noise, rotation (deg)", f"{_DATA}.dataparser.pose_noise_rotation_deg"),
    ("Pose noise, translation (radii)", f"{_DATA}.dataparser.pose_noise_translation"),
    ("Registration", f"{_MODEL}.registration"),
    ("Poses after registration", f"{_MODEL}.registered_poses"),
    ("Pose optimizer", f"{_MODEL}.camera_optimizer.mode"),
    ("Initial surface", f"{_MODEL}.start"),
    ("Encoding", f"{_MODEL}.sdf_field.encoding"),
    ("Gradients", f"{_MODEL}.gradients"),
    ("Normal loss", f"{_MODEL}.normal_loss"),
    ("Normal loss weight", f"{_MODEL}.loss_weights.normal"),
    ("Mask loss weight", f"{_MODEL}.loss_weights.mask"),
    ("Depth loss weight", f"{_MODEL}.loss_weights.depth"),
    ("Eikonal loss weight", f"{_MODEL}.loss_weights.eikonal"),
    ("Least sharpness (inv_s), start and end", f"{_MODEL}.inv_s_floor"),
)
"""Labels and attribute paths in the configuration."""


def main_settings(config: Any) -> list[tuple[str, str]]:
    """Labels and values of the main settings that a run's configuration has and that are not empty."""
    found = []
    for label, path in MAIN_SETTINGS:
        value = config
        for name in path.split("."):
            value = getattr(value, name, None)
        if value not in (None, (), []):
            found.append((label, _format(value)))
    return found


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_format(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, (str, int, PurePath)) else type(value).__name__

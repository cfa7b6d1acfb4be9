# SPDX-License-Identifier: Apache-2.0
"""Results of a sequence: sequence.json, cameras, and an animated glTF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pmni_nerfstudio.data.atomic import write_json
from pmni_nerfstudio.data.result_files import read_mesh
from pmni_nerfstudio.evaluation.stored_sequence import SEQUENCE_FILE
from pmni_nerfstudio.export.animation import write_animated_glb
from pmni_nerfstudio.export.cameras import write_result_cameras
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.sequences.plan import Plan

ANIMATION = "sequence.glb"
_FRAMES_PER_SECOND = 12.0


def write_results(plan: Plan, records: Mapping[str, dict[str, Any]]) -> list[Path]:
    """Write what belongs to the sequence as a whole.

    Args:
        plan: the sequence.
        records: record of every frame by its name.

    Returns:
        The files written, and the folder of the meshes.

    Raises:
        PmniError: a mesh cannot be read, or a file cannot be written.
    """
    shared = plan.shared
    done = [frame for frame in plan.frames if records[frame.name]["error"] is None]
    files = []
    first = done[0].read(plan.settings.normals_folder) if done else None
    contents: dict[str, Any] = {
        "cameras": "moving" if shared is None else "static",
        "units": "the data's units" if first is not None and first.c2w is not None else "object units, without scale",
        "frames": [
            {
                key: value
                for key, value in records[frame.name].items()
                if key not in ("key", "world_from_unit") and (shared is None or key != "c2w")
            }
            for frame in plan.frames
        ],
    }
    if shared is not None:
        c2w = transform_poses(shared.world_from_unit, shared.c2w)
        contents |= {
            "c2w": c2w.tolist(),
            "registered_frame": shared.frame,
            "verdict_of_poses": shared.verdict,
            "reasons_of_poses": list(shared.reasons),
        }
    if first is not None:
        if shared is not None:
            files += write_result_cameras(plan.out, shared.scene(first), np.array(contents["c2w"]))
        meshes = {frame.name: read_mesh(plan.mesh(frame)) for frame in done}
        write_animated_glb(plan.out / ANIMATION, meshes, _FRAMES_PER_SECOND)
        files += [plan.out / ANIMATION, plan.mesh(done[0]).parent]
    write_json(plan.out / SEQUENCE_FILE, contents)
    return [*files, plan.out / SEQUENCE_FILE]

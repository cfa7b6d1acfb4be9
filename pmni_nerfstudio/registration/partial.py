# SPDX-License-Identifier: Apache-2.0
"""The coarse result of a registration on disk, with which an interrupted one goes on at the fine levels."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from pmni_nerfstudio.data.npz import read_npz, write_npz
from pmni_nerfstudio.errors import PmniError, SceneError
from pmni_nerfstudio.registration.intrinsics import RefinedIntrinsics
from pmni_nerfstudio.registration.pairwise.ring_hypotheses import Hypothesis
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.reflectance import EstimatedBias, bias_from_record
from pmni_nerfstudio.registration.starts import Start
from pmni_nerfstudio.registration.surface.sdf_grid import Surface

_MAX_BYTES = 1 << 29
"""Largest size of an array: that of a surface with 512 vertices per axis."""
_POSES = ("poses", "start_poses", "reference")
_NAMES = {f"{name}_{part}" for name in _POSES for part in "Rt"} | {"sdf", "inliers", "record"}


@dataclass(frozen=True, eq=False)
class CoarseResult:
    """Poses and surface after the coarse levels, with the corrections of normals and intrinsics."""

    start: Start
    poses: Poses
    surface: Surface
    inliers: Bool[np.ndarray, " n"]
    reflectance: EstimatedBias
    intrinsics: RefinedIntrinsics
    seconds: dict[str, float]
    """Time of each stage so far."""


def save_coarse_result(path: Path, result: CoarseResult) -> None:
    """Write a coarse result as an .npz file, atomically.

    Raises:
        PmniError: the file cannot be written.
    """
    start = result.start
    record = {
        "start": start.name,
        "pairwise_cost": float(start.pairwise_cost),
        "hypotheses": [[h.name, float(h.cost), bool(h.pruned)] for h in start.hypotheses],
        "intrinsics": dataclasses.asdict(result.intrinsics),
        "reflectance": dataclasses.asdict(result.reflectance),
        "seconds": result.seconds,
    }
    arrays = {"sdf": result.surface.sdf, "inliers": result.inliers, "record": np.array(json.dumps(record), dtype=str)}
    for name, poses in zip(_POSES, (result.poses, start.poses, start.reference)):
        arrays |= {f"{name}_R": poses.R, f"{name}_t": poses.t}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_npz(path, arrays)


def load_coarse_result(path: Path, num_views: int) -> CoarseResult:
    """Read a file that `save_coarse_result` wrote.

    Args:
        path: The file.
        num_views: Number of views of the registration.

    Raises:
        PmniError: the file is damaged, or holds something else.
    """
    try:
        arrays = read_npz(path, _NAMES.__contains__, _MAX_BYTES)
        found = [Poses(arrays[f"{name}_R"], arrays[f"{name}_t"]) for name in _POSES]
        record: dict[str, Any] = json.loads(str(arrays["record"]))
        fields = record["intrinsics"]
        fields |= {name: tuple(map(float, fields[name])) for name in ("shift", "shift_std")}
        hypotheses = tuple(Hypothesis(str(name), float(cost), bool(out)) for name, cost, out in record["hypotheses"])
        shapes = {(poses.R.shape, poses.t.shape) for poses in found}
        if shapes != {((num_views, 3, 3), (num_views, 3))} or arrays["inliers"].shape != (num_views,):
            raise ValueError("the number of views differs")
        start = Start(str(record["start"]), found[1], found[2], float(record["pairwise_cost"]), hypotheses)
        return CoarseResult(
            start,
            found[0],
            Surface(arrays["sdf"]),
            arrays["inliers"],
            bias_from_record(record["reflectance"]),
            RefinedIntrinsics(**fields),
            record["seconds"],
        )
    except (SceneError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise PmniError(f"{path}: not a valid coarse registration ({error}); remove it to register again") from error

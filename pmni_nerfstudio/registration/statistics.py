# SPDX-License-Identifier: Apache-2.0
"""Statistics of a registration for files and pages: the contents of registration.json, and the verdict in them."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.data.files import read_json_object
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.registration.pipeline import Registration
from pmni_nerfstudio.registration.verdict import VERDICTS

STATISTICS = "registration.json"
"""Name of the file with the statistics, beside a registration's results and in the folder of a run."""


def registration_statistics(
    registration: Registration, names: Sequence[str], K: Float[np.ndarray, "n 3 3"]
) -> dict[str, Any]:
    """Contents of registration.json.

    Args:
        registration: result for n views.
        names: names of the views.
        K: given intrinsics of the views, in pixels of the scene.
    """
    j = registration.agreement
    return {
        "verdict": registration.verdict.name,
        "reasons": list(registration.verdict.reasons),
        "start": registration.start,
        "intrinsics": {
            **registration.intrinsics.statistics(K),
            "given": _mean_intrinsics(K),
            "refined": _mean_intrinsics(registration.intrinsics.corrected(K)),
        },
        "reflectance_bias": registration.reflectance.statistics(),
        "cost": round(j.cost, 6),
        "pairwise_cost": registration.pairwise_cost,
        "residual_deg": {"mean": _round(j.residual_deg.mean()), "median": _round(np.median(j.median_deg))},
        "inlier_share": _round(j.inlier_ratio.mean()),
        "views": [
            {
                "name": name,
                "status": view.status,
                "reason": view.reason,
                "residual_deg": _round(j.residual_deg[i]),
                "inlier_share": _round(j.inlier_ratio[i]),
                "mask_iou": _round(j.iou[i]),
                "confidence": _round(j.confidence[i]),
            }
            for i, (name, view) in enumerate(zip(names, registration.verdict.views))
        ],
        "hypotheses": [{"name": h.name, "cost": h.cost, "pruned": h.pruned} for h in registration.hypotheses],
        "seconds": {**registration.seconds, "total": _round(sum(registration.seconds.values()))},
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("pmni-nerfstudio", "numpy", "scipy", "torch", "open3d")},
        },
    }


def verdict_record(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Verdict, reasons, status and residual of every view, and reflectance bias, from the contents of registration.json.

    Raises:
        ValueError: the contents are not those of `registration_statistics`.
    """
    name, reasons, views = (statistics.get(key) for key in ("verdict", "reasons", "views"))
    if name not in VERDICTS or not isinstance(reasons, list) or not isinstance(views, list):
        raise ValueError("verdict, reasons or views are missing")
    keys = ("name", "status", "reason")
    if not all(isinstance(view, dict) and set(keys) <= view.keys() for view in views):
        raise ValueError(f"a view lacks {', '.join(keys)}")
    return {
        "verdict": name,
        "reasons": [str(reason) for reason in reasons],
        "views": [
            {**{key: str(view[key]) for key in keys}, "residual_deg": view.get("residual_deg")} for view in views
        ],
        "reflectance_bias": statistics.get("reflectance_bias"),
    }


def verdict_lines(record: Mapping[str, Any]) -> list[str]:
    """Text of a `verdict_record`: the verdict and the views that are not simply ok, then one line for each reason."""
    line = f"Registration: {record['verdict']}"
    for status in ("relocated", "left out"):
        names = [view["name"] for view in record["views"] if view["status"] == status]
        if names:
            line += f"; {status}: {', '.join(names)}"
    return [line, *(f"  {reason}" for reason in record["reasons"])]


def read_verdict(folder: Path) -> dict[str, Any] | None:
    """`verdict_record` of the registration.json in a folder; None if there is none.

    Raises:
        PmniError: the file is invalid.
    """
    path = folder / STATISTICS
    if not path.is_file():
        return None
    advice = "write it again with pmni register, or remove it"
    try:
        return verdict_record(read_json_object(path, advice))
    except ValueError as error:
        raise PmniError(f"{path}: holds no verdict ({error}); {advice}") from error


def _mean_intrinsics(K: Float[np.ndarray, "n 3 3"]) -> dict[str, float]:
    """Mean intrinsics of the views, with the names of intrinsics.json; pixel centers at integers."""
    mean = K.mean(axis=0)
    return {name: _round(mean[i]) for name, i in (("fl_x", (0, 0)), ("fl_y", (1, 1)), ("cx", (0, 2)), ("cy", (1, 2)))}


def _round(value: float | np.floating) -> float:
    return round(float(value), 4)

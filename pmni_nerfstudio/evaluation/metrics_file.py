# SPDX-License-Identifier: Apache-2.0
"""Output of `pmni eval`: metrics.json, views.csv and the printed table."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pmni_nerfstudio.data.atomic import atomic_path, write_json
from pmni_nerfstudio.evaluation.evaluate import Evaluation

METRICS_FILE = "metrics.json"
VIEWS_FILE = "views.csv"

SCALED_UNITS, OBJECT_UNITS = "mm", "object units"
"""Names of the units of data with and without a scale, unless the user names them."""
Record = dict[str, Any]
"""Contents of metrics.json."""


def metrics_record(
    evaluation: Evaluation,
    *,
    names: list[str],
    scene: Path | None,
    config: Path | None,
    method: str | None,
    units: str | None,
    has_scale: bool = True,
    registration: Record | None = None,
    normals_folder: str | None = None,
) -> Record:
    """Contents of metrics.json.

    Args:
        evaluation: Metrics to record.
        names: Names of the N views.
        scene: Absolute path of the scene's folder, if known.
        config: Absolute path of the run's config.yml, if known.
        method: Name of the method, if known.
        units: Name of the data's units; None: those of a scene with or without a scale.
        has_scale: Whether the data's world has a scale, which a scene without poses does not. Without one, the mesh is
            brought to the scale of the ground truth, if there is any: all figures are in the same units.
        registration: Verdict of the registration (see `verdict_record`), if one is known.
        normals_folder: Name of the scene's folder of normal maps that were read, if known.
    """
    scores, normals = evaluation.scores, evaluation.normals
    poses = None if scores is None or scores.poses is None else asdict(scores.poses)
    per_view: list[Record] = [{"name": name, "held_out": False} for name in names]
    if normals is not None:
        for view, score, trained in zip(per_view, normals.views, normals.trained.tolist(), strict=True):
            view.update({"held_out": not trained, **asdict(score)})
    if poses is not None:
        rotations, positions = poses.pop("rot_deg_views"), poses.pop("position_views")
        own = np.flatnonzero([not view["held_out"] for view in per_view])
        for i, rotation, position in zip(own, rotations, positions):
            per_view[i].update({"rot_deg": rotation, "position": position})
    mesh = evaluation.mesh
    if not has_scale and scores is not None and evaluation.aligned:
        mesh, has_scale = mesh.scaled(scores.scale), True
    columns = dict.fromkeys(("name", "held_out", "mae_deg", "median_deg", "mask_iou", "rot_deg", "position"))
    return {
        "scene": None if scene is None else str(scene),
        "config": None if config is None else str(config),
        "normals_folder": normals_folder,
        "method": method,
        "units": units or (SCALED_UNITS if has_scale else OBJECT_UNITS),
        "registration": registration,
        "aligned": evaluation.aligned,
        "similarity": scores.similarity.tolist() if scores is not None and evaluation.aligned else None,
        "surface": None if scores is None else asdict(scores.surface),
        "poses": poses,
        "normals": None
        if normals is None
        else {
            "against": normals.against,
            "mae_deg": normals.mae_deg(normals.trained),
            "median_deg": normals.median_deg,
            "held_out_mae_deg": normals.mae_deg(~normals.trained),
            "mask_iou": normals.mask_iou,
        },
        "mesh": asdict(mesh),
        "views": [{column: view.get(column) for column in columns} for view in per_view],
    }


def write_metrics(folder: Path, record: Record) -> list[Path]:
    """Write metrics.json and views.csv, each atomically, and return their paths."""
    files = [folder / METRICS_FILE, folder / VIEWS_FILE]
    write_json(files[0], record)
    with atomic_path(files[1]) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(record["views"][0]))
        writer.writeheader()
        writer.writerows(record["views"])
    return files


def metrics_table(record: Record, title: str, scale: float) -> Table:
    """Table of the metrics for a terminal.

    Args:
        record: Contents of metrics.json.
        title: Title of the table.
        scale: Scale factor of the alignment.
    """
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    units = record["units"]
    if surface := record["surface"]:
        table.add_row("Chamfer distance", f"{surface['chamfer']:.4g}", units)
        table.add_row("", f"{surface['chamfer_pct']:.4f}", "% of the diameter")
        table.add_row("  accuracy", f"{surface['accuracy']:.4g}", f"{units}, result to ground truth")
        table.add_row("  completeness", f"{surface['completeness']:.4g}", f"{units}, ground truth to result")
        table.add_row("F-score", f"{surface['fscore']:.4f}", f"at {surface['threshold']:g} {units}")
        table.add_row("", f"{surface['fscore_1pct']:.4f}", "at 1% of the diameter")
    if poses := record["poses"]:
        table.add_section()
        table.add_row("rotation error", f"{poses['rot_deg']:.4f}", "deg, mean")
        table.add_row("", f"{poses['rot_deg_max']:.4f}", "deg, worst view")
        table.add_row("  relative (RPE)", f"{poses['rpe_rot_deg']:.4f}", "deg, root mean square")
        table.add_row("views under 1 deg", f"{poses['views_under_1deg']:.0%}", "")
        table.add_row("position error", f"{poses['position']:.4g}", f"{units}, mean")
        table.add_row("", f"{poses['position_pct']:.3f}", "% of the radius, mean")
        table.add_row("  absolute (ATE)", f"{poses['ate']:.4g}", f"{units}, root mean square")
        table.add_row("  relative (RPE)", f"{poses['rpe_position']:.4g}", f"{units}, root mean square")
    if normals := record["normals"]:
        table.add_section()
        against = "input normals" if normals["against"] == "inputs" else "ground-truth normals"
        if normals["mae_deg"] is not None:
            table.add_row("normal error", f"{normals['mae_deg']:.3f}", f"deg, mean, against {against}")
        table.add_row("", f"{normals['median_deg']:.3f}", "deg, median")
        if normals["held_out_mae_deg"] is not None:
            table.add_row("  held-out views", f"{normals['held_out_mae_deg']:.3f}", "deg, mean")
        table.add_row("mask IoU", f"{normals['mask_iou']:.4f}", "intersection over union")
    mesh = record["mesh"]
    table.add_section()
    table.add_row("mesh", f"{mesh['faces']:,}", "faces")
    table.add_row("", f"{mesh['components']}", "components")
    table.add_row("watertight", "yes" if mesh["watertight"] else "no", "")
    if mesh["self_intersections"] is not None:
        table.add_row("self-intersections", f"{mesh['self_intersections']:,}", "faces")
    table.add_row("area", f"{mesh['area']:.5g}", f"{units}^2")
    if mesh["volume"] is not None:
        table.add_row("volume", f"{mesh['volume']:.5g}", f"{units}^3")
    table.add_row("mean curvature", f"{mesh['mean_curvature']:.4g}", f"1/{units}, mean")
    if record["surface"]:
        table.add_section()
        table.add_row("alignment", "similarity" if record["aligned"] else "none", f"scale {scale:.5f}")
    return table

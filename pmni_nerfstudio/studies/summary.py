# SPDX-License-Identifier: Apache-2.0
"""Outcomes as tables: one row for each in CSV, mean and spread by method for the eye."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.studies.job import Outcome

COLUMNS: dict[str, tuple[str, str, str]] = {
    "rot_deg": ("poses", "rot_deg", "rotation, deg"),
    "chamfer": ("surface", "chamfer", "Chamfer, {units}"),
    "chamfer_pct": ("surface", "chamfer_pct", "Chamfer, %"),
    "fscore": ("surface", "fscore", "F-score"),
    "mae_deg": ("normals", "mae_deg", "normals, deg"),
}
"""Of metrics.json: section, name, and what it is called in a table."""


def value(outcome: Outcome, column: str) -> float | None:
    """A measure of an outcome, or what it cost; None where it wasn't measured."""
    if column in ("seconds", "peak_gb"):
        return getattr(outcome, column)
    section, name, _ = COLUMNS[column]
    found = (outcome.metrics or {}).get(section)
    return None if found is None else found[name]


def outcome_table(outcomes: Sequence[Outcome], title: str) -> Table:
    """A row for each outcome."""
    table = _table(outcomes, title, "method")
    for outcome in outcomes:
        cells = [_number(value(outcome, column)) for column in (*COLUMNS, "seconds", "peak_gb")]
        table.add_row(escape(outcome.label), *cells)
    return table


def spread_table(outcomes: Sequence[Outcome], title: str) -> Table:
    """A row for each method: mean and standard deviation over its scenes and seeds."""
    table = _table(outcomes, title, "method", "runs", "failed")
    for method, row in spreads(outcomes).items():
        cells = [
            _number(mean) if spread is None else f"{_number(mean)} ±{_number(spread)}"
            for mean, spread in row["of"].values()
        ]
        table.add_row(escape(method), str(row["runs"]), str(row["failed"]), *cells)
    return table


def spreads(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """By method and flags: runs, failed, and of each measure the mean and the sample's standard deviation (None for one
    run)."""
    found: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(outcome.label for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.label == method]
        of: dict[str, tuple[float | None, float | None]] = {}
        for column in (*COLUMNS, "seconds", "peak_gb"):
            values = [v for outcome in own if outcome.reason is None and (v := value(outcome, column)) is not None]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            of[column] = (float(np.mean(values)), spread) if values else (None, None)
        found[method] = {"runs": len(own), "failed": sum(o.reason is not None for o in own), "of": of}
    return found


def write_outcomes(folder: Path, name: str, outcomes: Sequence[Outcome]) -> list[Path]:
    """Write NAME.json, everything, and NAME.csv, a row for each outcome; each atomically."""
    files = [folder / f"{name}.json", folder / f"{name}.csv"]
    with atomic_path(files[0]) as path:
        whole = {"outcomes": [asdict(outcome) for outcome in outcomes], "methods": spreads(outcomes)}
        path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    with atomic_path(files[1]) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = (*COLUMNS, "seconds", "peak_gb")
        writer.writerow(["method", "scene", "seed", *columns, "flags", "reason", "folder"])
        for o in outcomes:
            numbers = (value(o, column) for column in columns)
            flags = shlex.join(o.flags)
            writer.writerow([o.method, o.scene, o.seed, *numbers, flags, o.reason or "", o.folder])
    return files


def _table(outcomes: Sequence[Outcome], title: str, *first: str) -> Table:
    units = {outcome.metrics["units"] for outcome in outcomes if outcome.metrics}
    table = Table(title=escape(title), title_justify="left")
    names = max((len(outcome.method) for outcome in outcomes), default=0)  # flags go into more lines
    for name in first:
        table.add_column(name, width=max(names, len(name)) if name == "method" else None, overflow="fold")
    labels = [label.format(units=" or ".join(sorted(units)) or "units") for _, _, label in COLUMNS.values()]
    for label in (*labels, "seconds", "GB"):
        table.add_column(label, justify="right", overflow="fold")  # no digit is left out where it is narrow
    return table


def _number(number: float | None) -> str:
    return "-" if number is None else f"{number:.3g}" if abs(number) < 100 else f"{number:.0f}"

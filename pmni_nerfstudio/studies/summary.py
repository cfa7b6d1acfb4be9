# SPDX-License-Identifier: Apache-2.0
"""Tables of job results: one row per job, or mean and standard deviation per method."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from pmni_nerfstudio.data.atomic import atomic_path, write_json
from pmni_nerfstudio.studies.job import JobResult

METRIC_COLUMNS: dict[str, tuple[str, str, str]] = {
    "rot_deg": ("poses", "rot_deg", "rotation, deg"),
    "chamfer": ("surface", "chamfer", "Chamfer, {units}"),
    "chamfer_pct": ("surface", "chamfer_pct", "Chamfer, %"),
    "fscore": ("surface", "fscore", "F-score"),
    "mae_deg": ("normals", "mae_deg", "normals, deg"),
}
"""Columns of metrics.json: section, key, and header in tables."""
COLUMNS = (*METRIC_COLUMNS, "seconds", "peak_gb")
"""All columns, with the cost of a job."""


def measure(result: JobResult, column: str) -> float | None:
    """Value of one of COLUMNS for a job; None if it was not measured."""
    if column not in METRIC_COLUMNS:
        return getattr(result, column)
    section, key, _ = METRIC_COLUMNS[column]
    metrics = (result.metrics or {}).get(section)
    return None if metrics is None else metrics[key]


def columns_of(results: Sequence[JobResult]) -> dict[str, str]:
    """Columns of a table of results, with their headers.

    Results in different units (or with and without a scale) have no column of lengths: those don't belong in one table.
    """
    units = {result.metrics["units"] for result in results if result.metrics}
    headers = {name: header for name, (_, _, header) in METRIC_COLUMNS.items()} | {
        "seconds": "seconds",
        "peak_gb": "GB",
    }
    return {
        name: header.format(units=next(iter(units), "units"))
        for name, header in headers.items()
        if "{units}" not in header or len(units) <= 1
    }


def result_table(results: Sequence[JobResult], title: str) -> Table:
    """Table with one row per job."""
    table = _table(results, title, "method")
    for result in results:
        table.add_row(escape(result.label), *(_number(measure(result, column)) for column in columns_of(results)))
    return table


def method_table(results: Sequence[JobResult], title: str) -> Table:
    """Table with one row per method: mean and standard deviation over its scenes and seeds."""
    table = _table(results, title, "method", "runs", "failed")
    for method, row in method_statistics(results).items():
        cells = [
            _number(mean) if deviation is None else f"{_number(mean)} ±{_number(deviation)}"
            for mean, deviation in row["of"].values()
        ]
        table.add_row(escape(method), str(row["runs"]), str(row["failed"]), *cells)
    return table


def method_statistics(results: Sequence[JobResult]) -> dict[str, dict[str, Any]]:
    """Statistics of the results, by method and flags.

    Returns:
        For each method: "runs" and "failed", numbers of jobs, and "of": by column, mean and sample standard deviation
        (None for a single value). Lengths in different units have none.
    """
    statistics: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(result.label for result in results):
        own = [result for result in results if result.label == method]
        of: dict[str, tuple[float | None, float | None]] = {}
        for column in columns_of(results):
            values = [v for result in own if result.reason is None and (v := measure(result, column)) is not None]
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
            of[column] = (float(np.mean(values)), deviation) if values else (None, None)
        statistics[method] = {"runs": len(own), "failed": sum(r.reason is not None for r in own), "of": of}
    return statistics


def write_results(folder: Path, name: str, results: Sequence[JobResult]) -> list[Path]:
    """Write NAME.json with results and statistics, and NAME.csv with one row per job, each atomically."""
    files = [folder / f"{name}.json", folder / f"{name}.csv"]
    outcomes = [asdict(result) for result in results]
    write_json(files[0], {"outcomes": outcomes, "methods": method_statistics(results)})
    with atomic_path(files[1]) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "scene", "seed", *COLUMNS, "units", "flags", "reason", "folder"])
        for r in results:
            values = (measure(r, column) for column in COLUMNS)
            units = (r.metrics or {}).get("units", "")
            writer.writerow([r.method, r.scene, r.seed, *values, units, shlex.join(r.flags), r.reason or "", r.folder])
    return files


def _table(results: Sequence[JobResult], title: str, *first_columns: str) -> Table:
    table = Table(title=escape(title), title_justify="left")
    width = max((len(result.method) for result in results), default=0)  # flags wrap to further lines
    for name in first_columns:
        table.add_column(name, width=max(width, len(name)) if name == "method" else None, overflow="fold")
    for header in columns_of(results).values():
        table.add_column(header, justify="right", overflow="fold")  # in a narrow terminal no digit is cut off
    return table


def _number(number: float | None) -> str:
    return "-" if number is None else f"{number:.3g}" if abs(number) < 100 else f"{number:.0f}"

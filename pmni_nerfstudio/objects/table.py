# SPDX-License-Identifier: Apache-2.0
"""Table of the objects of a capture."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table


def objects_table(record: dict[str, Any], title: str) -> Table:
    """One row for each object of objects.json, with errors if there was ground truth."""
    table = Table(title=escape(title), title_justify="left")
    scored = "poses" in record
    columns = ("object", "views", "hidden, %", "normals, deg")
    for header in (*columns, *(("truth", "Chamfer", "Chamfer, %", "whole, %") if scored else ())):
        table.add_column(header, justify="right", overflow="fold")
    for entry in record["objects"]:
        hidden = sum(entry["hidden"].values()) / max(len(entry["hidden"]), 1)
        normals = None if entry["normals"] is None else entry["normals"].get("mae_deg")
        row = [str(entry["object"]), str(len(entry["views"])), f"{100 * hidden:.0f}", _number(normals)]
        if scored and entry["scores"] is None:
            row += ["-"] * 4
        elif scored:
            visible, whole = entry["scores"]["visible"], entry["scores"]["whole"]
            row += [escape(entry["scores"]["truth"]), _number(visible["chamfer"]), _number(visible["chamfer_pct"])]
            row.append(_number(whole["chamfer_pct"]))
        table.add_row(*row)
    if scored:
        table.caption = f"poses: rotation error {record['poses']['rot_deg']:.3f} deg"
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"

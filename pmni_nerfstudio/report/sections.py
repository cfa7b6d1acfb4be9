# SPDX-License-Identifier: Apache-2.0
"""The sections of a page about one result. What a section needs and isn't there, a short line says in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import trimesh
from markupsafe import Markup

from pmni_nerfstudio.data.images import data_uri
from pmni_nerfstudio.evaluation.record import METRICS, VIEWS, Record, table_of
from pmni_nerfstudio.export.cameras import POSES
from pmni_nerfstudio.geometry.mesh import simplify
from pmni_nerfstudio.geometry.transforms import scale_of
from pmni_nerfstudio.report.curves import loss_figure, metric_figure, read_curves
from pmni_nerfstudio.report.figures import AFTER, BEFORE, camera_figure, camera_scale, display_frame, mesh_figure
from pmni_nerfstudio.report.outcome import MESH, Outcome
from pmni_nerfstudio.report.page import Section, figure, note
from pmni_nerfstudio.report.settings import telling_settings
from pmni_nerfstudio.report.strips import colour_stops, errors_deg, scale_end_deg, view_strips
from pmni_nerfstudio.report.templates import render

FACES = 40_000
"""Of the mesh that turns in the browser."""

COARSE_FACES = 8_000
"""Of the mesh among the cameras."""

LARGEST_MESH = 3_000_000
"""Bytes: a larger mesh.ply is replaced by the one of FACES faces in the page's downloads."""


@dataclass(frozen=True)
class Download:
    """A file within the page."""

    name: str
    uri: str
    about: str
    """Its size and the like."""


def sections_of(outcome: Outcome) -> list[Section]:
    """All of them, in order.

    Raises:
        PmniError: a file that is there is broken.
    """
    small = None if outcome.mesh is None else simplify(outcome.mesh, FACES)
    return [
        Section("metrics", "Measures", metrics(outcome)),
        Section("mesh", "Mesh", mesh(outcome, small)),
        Section("views", "Views", views(outcome)),
        Section("cameras", "Cameras", cameras(outcome, small)),
        Section("curves", "Training", curves(outcome)),
        Section("settings", "Settings", settings(outcome)),
        Section("files", "Files", files(outcome, small)),
    ]


def metrics(outcome: Outcome) -> Markup:
    """The measures: the most telling ones large, then all of them as `pmni eval` prints them."""
    similarity = outcome.record["similarity"]
    scale = 1.0 if similarity is None else scale_of(np.array(similarity))
    return render("metrics", headline(outcome.record), _tables(outcome.record, scale))


def headline(record: Record) -> list[tuple[str, str, str]]:
    """Label, value and unit of the measures that tell most."""
    tiles = []
    if surface := record["surface"]:
        tiles.append(("Chamfer distance", f"{surface['chamfer']:.3g}", record["units"]))
        tiles.append(("Chamfer, of the diameter", f"{surface['chamfer_pct']:.3g}", "%"))
    if poses := record["poses"]:
        tiles.append(("rotation error, mean", f"{poses['rot_deg']:.3g}", "deg"))
        tiles.append(("position error, mean", f"{poses['position']:.3g}", record["units"]))
    if (normals := record["normals"]) and normals["mae_deg"] is not None:
        against = "input" if normals["against"] == "inputs" else "true"
        tiles.append((f"normals against {against} ones, mean", f"{normals['mae_deg']:.3g}", "deg"))
    return tiles


def views(outcome: Outcome) -> Markup:
    """Every view's normals and their errors."""
    if outcome.scene is None or not outcome.has_maps:
        missing = (
            f"the scene {outcome.record['scene']}" if outcome.scene is None else f"{outcome.folder}'s rendered maps"
        )
        return note(f"No pictures of the views: {missing} can't be found.")
    errors = errors_deg(outcome)
    end = scale_end_deg(errors)
    return strips_html(outcome, errors, end)


def strips_html(outcome: Outcome, errors: Sequence[np.ndarray], end_deg: float) -> Markup:
    """The strips of a result with scene and maps.

    Args:
        outcome: the result.
        errors: its own, of `errors_deg`.
        end_deg: end of the colour scale, the same for results that are to be compared.
    """
    against = (outcome.record["normals"] or {"against": "inputs"})["against"]
    labels = ["input normals" if against == "inputs" else "true normals", "rendered normals", "angular error"]
    strips = view_strips(outcome, errors, end_deg)
    return render("strips", strips, labels, end_deg, colour_stops(), outcome.record["units"])


def curves(outcome: Outcome) -> Markup:
    """Losses and metrics against steps."""
    if outcome.config_file is None:
        return note("No curves: no run is known, or its folder is gone.")
    found = read_curves(outcome.config_file.parent)
    losses, others = loss_figure(found), metric_figure(found, outcome.record["units"])
    if losses is None and others is None:
        return note(
            f"No curves: {outcome.config_file.parent} holds no TensorBoard events (ns-train --vis tensorboard)."
        )
    return Markup("<br>").join(figure(drawn) for drawn in (losses, others) if drawn is not None)


def cameras(outcome: Outcome, mesh: trimesh.Trimesh | None) -> Markup:
    """Cameras before and after, about the mesh."""
    sets = [("given", BEFORE, outcome.given_c2w), ("found", AFTER, outcome.c2w)]
    known = [(label, colour, c2w) for label, colour, c2w in sets if c2w is not None]
    if mesh is None or not known:
        return note("No cameras: neither the scene nor the result has poses, or the result has no mesh.")
    frame = display_frame(mesh, known[-1][2])
    scale = camera_scale(frame, [c2w for _, _, c2w in known])
    text = "Each pyramid opens where its camera looks."
    if outcome.given_c2w is None:
        text += " The scene gives no poses." if outcome.scene is not None else " The scene's own poses are not at hand."
    if outcome.c2w is None:
        text += f" The result has no {POSES}: these are the scene's."
    if scale < 1:
        text += f" Distances from the object are drawn {1 / scale:.1f} times too small."
    drawn = camera_figure(simplify(mesh, COARSE_FACES), frame, known, outcome.names)
    return note(text) + figure(drawn)


def mesh(outcome: Outcome, small: trimesh.Trimesh | None) -> Markup:
    """The mesh, to be turned about."""
    if outcome.mesh is None or small is None:
        return note(f"No mesh: {outcome.folder / MESH} is missing.")
    text = "Drag to turn, scroll to come nearer."
    if len(small.faces) < len(outcome.mesh.faces):
        text += f" Drawn with {len(small.faces):,} of its {len(outcome.mesh.faces):,} faces."
    c2w = outcome.c2w if outcome.c2w is not None else outcome.given_c2w
    return note(text) + figure(mesh_figure(small, display_frame(small, c2w)))


def settings(outcome: Outcome) -> Markup:
    """The run's settings."""
    if outcome.config_file is None:
        return note("No settings: no run is known, or its config.yml is gone.")
    rows = telling_settings(outcome.config)
    third = -(-len(rows) // 3)
    columns = [rows[start : start + third] for start in range(0, len(rows), third)]
    return render("settings", columns, str(outcome.config_file), outcome.config_file.read_text(encoding="utf-8"))


def files(outcome: Outcome, small: trimesh.Trimesh | None) -> Markup:
    """Links to the result's files, which lie within the page."""
    found = []
    if small is not None and outcome.mesh is not None:
        path = outcome.folder / MESH
        content, about = path.read_bytes() if path.stat().st_size <= LARGEST_MESH else b"", ""
        if not content:
            content, about = _ply(small), f"simplified to {len(small.faces):,} faces, "
        found.append(_download(path.name, content, "application/octet-stream", about))
    for name, kind in ((POSES, "application/octet-stream"), (METRICS, "application/json"), (VIEWS, "text/csv")):
        path = outcome.folder / name
        if path.is_file():
            found.append(_download(name, path.read_bytes(), kind))
    return render("downloads", found)


def _tables(record: Record, scale: float) -> list[list[tuple[str, str, str]]]:
    """What `pmni eval` prints, section by section."""
    table = table_of(record, "", scale)
    cells = zip(*([str(cell) for cell in column.cells] for column in table.columns))
    number = np.cumsum([0, *(row.end_section for row in table.rows[:-1])])
    return [[row for row, _ in group] for _, group in groupby(zip(cells, number), key=lambda pair: pair[1])]


def _ply(mesh: trimesh.Trimesh) -> bytes:
    content = mesh.export(file_type="ply")
    assert isinstance(content, bytes)
    return content


def _download(name: str, content: bytes, kind: str, about: str = "") -> Download:
    size = f"{len(content) / 1e6:.1f} MB" if len(content) >= 1e6 else f"{max(1, round(len(content) / 1e3))} KB"
    return Download(Path(name).name, data_uri(content, kind), about + size)

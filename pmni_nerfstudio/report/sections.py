# SPDX-License-Identifier: Apache-2.0
"""Sections of the report on one result. A section whose data are missing says so in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

import numpy as np
import trimesh
from markupsafe import Markup

from pmni_nerfstudio.data.images import data_uri
from pmni_nerfstudio.data.mesh_files import mesh_bytes
from pmni_nerfstudio.evaluation.metrics_file import METRICS_FILE, VIEWS_FILE, Record, metrics_table
from pmni_nerfstudio.evaluation.stored_result import MESH_FILE, StoredResult
from pmni_nerfstudio.export.cameras import POSES
from pmni_nerfstudio.geometry.mesh import simplify
from pmni_nerfstudio.geometry.sim3 import angles_deg
from pmni_nerfstudio.geometry.transforms import scale_of
from pmni_nerfstudio.report.appearance import baked_normals, vertex_colors
from pmni_nerfstudio.report.charts import bias_chart
from pmni_nerfstudio.report.curves import loss_chart, metric_charts, read_curves
from pmni_nerfstudio.report.figures import (
    GIVEN_COLOR,
    REFINED_COLOR,
    CameraSet,
    Surface,
    camera_scale,
    camera_view,
    surface_view,
)
from pmni_nerfstudio.report.frames import display_frame
from pmni_nerfstudio.report.page import Section, figure, note, render
from pmni_nerfstudio.report.settings import main_settings
from pmni_nerfstudio.report.strips import color_stops, errors_deg, scale_end_deg, view_strips
from pmni_nerfstudio.report.vertex_errors import surface_errors

FACES = 40_000
"""Maximum number of faces of the displayed mesh."""

CAMERA_FIGURE_FACES = 8_000
"""Maximum number of faces of the mesh displayed among the cameras."""

LARGEST_MESH = 3_000_000
"""Maximum size in bytes of a mesh that is embedded for download; of a larger one, the displayed mesh is."""

LIGHT_MESH_FILE = "mesh_light.ply"
"""Name of the displayed mesh for download."""


@dataclass(frozen=True)
class Download:
    """A file embedded in the page, or beside it."""

    name: str
    uri: str
    description: str
    """Size of the file, after a remark if any."""


def report_sections(result: StoredResult) -> list[Section]:
    """Make all sections of the report on an evaluated result, in order.

    Raises:
        PmniError: A file of the result is invalid.
    """
    small = None if result.mesh is None else simplify(result.mesh, FACES)
    return [
        Section("metrics", "Metrics", metrics(result)),
        Section("mesh", "Mesh", mesh(result, small)),
        Section("registration", "Registration", registration(result)),
        Section("views", "Views", views(result)),
        Section("cameras", "Cameras", cameras(result, small)),
        Section("curves", "Training", curves(result)),
        Section("settings", "Settings", settings(result)),
        Section("files", "Files", files(result, small)),
    ]


def metrics(result: StoredResult) -> Markup:
    """Main metrics as tiles, then all metrics as `pmni eval` prints them."""
    similarity = result.record["similarity"]
    scale = 1.0 if similarity is None else scale_of(np.array(similarity))
    return render("metrics", main_metrics(result.record), _tables(result.record, scale))


def main_metrics(record: Record) -> list[tuple[str, str, str]]:
    """Labels, values and units of the main metrics."""
    tiles = []
    if surface := record["surface"]:
        tiles.append(("Chamfer distance", f"{surface['chamfer']:.3g}", record["units"]))
        tiles.append(("Chamfer distance, of the diameter", f"{surface['chamfer_pct']:.3g}", "%"))
    if poses := record["poses"]:
        tiles.append(("rotation error, mean", f"{poses['rot_deg']:.3g}", "deg"))
        tiles.append(("position error, mean", f"{poses['position']:.3g}", record["units"]))
    if (normals := record["normals"]) and normals["mae_deg"] is not None:
        against = "input" if normals["against"] == "inputs" else "ground-truth"
        tiles.append((f"normal error against {against} normals, mean", f"{normals['mae_deg']:.3g}", "deg"))
        tiles.append((f"normal error against {against} normals, median", f"{normals['median_deg']:.3g}", "deg"))
    return tiles


def registration(result: StoredResult) -> Markup:
    """Verdict of the registration, its reasons, and status, residual and turn of every view."""
    record = result.record.get("registration")
    if record is None:
        return note("No registration: the poses were given, or the evaluated mesh has no registration.json beside it.")
    turns = _turns_deg(result)
    rows = [
        (view["name"], view["status"], view.get("residual_deg"), turns.get(view["name"]), view["reason"])
        for view in record["views"]
    ]
    table = render("registration", record["verdict"], record["reasons"], rows)
    bias = record.get("reflectance_bias")
    if not bias or not bias["curve_deg"]:
        return table
    text = (
        f"Reflectance bias: normals lean away from the viewer by {bias['rms_deg']:.2f} ± {bias['std_deg']:.2f} deg (RMS "
        f"over the pixels); {'it was removed' if bias['applied'] else 'it was not removed: ' + bias['reason']}."
    )
    return table + note(text) + figure("chart", bias_chart(bias["curve_deg"]))


def _turns_deg(result: StoredResult) -> dict[str, float]:
    """Angles in degrees by which the views have turned from their given poses, by name; empty if either is unknown."""
    given, refined = result.given_c2w, result.c2w
    if given is None or refined is None or len(given) != len(refined):
        return {}
    return dict(zip(result.names, angles_deg(refined[:, :3, :3], given[:, :3, :3]).tolist()))


def views(result: StoredResult) -> Markup:
    """Normals of every view and their errors."""
    if result.scene is None or not result.has_maps:
        missing = f"scene {result.record['scene']}" if result.scene is None else f"rendered maps of {result.folder}"
        return note(f"No pictures of the views: the {missing} can't be found.")
    errors = errors_deg(result)
    return view_gallery(result, errors, scale_end_deg(errors))


def view_gallery(result: StoredResult, errors: Sequence[np.ndarray], end_deg: float) -> Markup:
    """Pictures of all views of a result that has a scene and maps.

    Args:
        result: Evaluated result.
        errors: Errors of the result, from `errors_deg`.
        end_deg: Upper end of the color scale in degrees; use the same for results to be compared.
    """
    against = (result.record["normals"] or {"against": "inputs"})["against"]
    reference = "input normals" if against == "inputs" else "ground-truth normals"
    labels = [reference, "rendered normals", "angular error"]
    strips = view_strips(result, errors, end_deg)
    return render("strips", strips, labels, end_deg, color_stops(), result.record["units"])


def curves(result: StoredResult) -> Markup:
    """Losses and metrics over the training steps."""
    if result.config_file is None:
        return note("No curves: the result has no training run, or its folder is missing.")
    found = read_curves(result.config_file.parent)
    losses, others = loss_chart(found), metric_charts(found, result.record["units"])
    if losses is None and not others:
        folder = result.config_file.parent
        return note(f"No curves: {folder} has no TensorBoard events (train with ns-train --vis tensorboard).")
    parts = [] if losses is None else [figure("chart", losses)]
    return Markup("").join([*parts, render("plots", [(name, figure("chart", plot)) for name, plot in others.items()])])


def cameras(result: StoredResult, mesh: trimesh.Trimesh | None) -> Markup:
    """Given and refined cameras around the mesh."""
    sets = [("given", GIVEN_COLOR, result.given_c2w), ("refined", REFINED_COLOR, result.c2w)]
    known = [CameraSet(label, color, c2w, result.names) for label, color, c2w in sets if c2w is not None]
    if mesh is None or not known:
        return note("No cameras: neither the scene nor the result has poses, or the result has no mesh.")
    frame = display_frame(mesh, known[-1].c2w)
    scale = camera_scale(frame, [group.c2w for group in known])
    text = "Each pyramid opens in the viewing direction of its camera."
    if result.given_c2w is None:
        text += " The scene has no given poses." if result.scene is not None else " The scene is not available."
    if result.c2w is None:
        text += " The result has no poses; the scene's are shown."
    if scale < 1:
        text += f" Distances from the object are reduced by a factor of {1 / scale:.1f}."
    small = simplify(mesh, CAMERA_FIGURE_FACES)
    surface = Surface(result.title, small, frame)
    alt = f"{len(known[-1].c2w)} cameras around the mesh of {result.title}"
    return note(text) + figure("scene", camera_view(surface, known, alt=alt))


def mesh(result: StoredResult, small: trimesh.Trimesh | None) -> Markup:
    """Interactive view of the mesh."""
    if result.mesh is None or small is None:
        return note(f"No mesh: {result.folder / MESH_FILE} is missing.")
    text = "Drag to rotate, scroll or pinch to zoom."
    if len(small.faces) < len(result.mesh.faces):
        text += f" Simplified to {len(small.faces):,} of its {len(result.mesh.faces):,} faces, with their normals."
    c2w = result.c2w if result.c2w is not None else result.given_c2w
    (errors,) = surface_errors([(result, small)])
    colors, remark = vertex_colors(result, small)
    frame, normals = display_frame(small, c2w), baked_normals(small, result.mesh)
    surface = Surface(result.title, small, frame, errors, result.field_volume, normals, colors)
    alt = f"Mesh of {result.title}, {len(small.faces):,} faces, seen from the first camera"
    return note(text + remark) + figure("scene", surface_view([surface], alt=alt))


def settings(result: StoredResult) -> Markup:
    """Main settings and complete configuration of the run."""
    if result.config_file is None:
        return note("No settings: the result has no training run, or its config.yml is missing.")
    rows = main_settings(result.config)
    third = -(-len(rows) // 3)
    columns = [rows[start : start + third] for start in range(0, len(rows), third)]
    return render("settings", columns, str(result.config_file), result.config_file.read_text(encoding="utf-8"))


def files(result: StoredResult, small: trimesh.Trimesh | None) -> Markup:
    """Links to the files of the result, which are embedded in the page."""
    found = []
    if small is not None and result.mesh_file is not None:
        if result.mesh_file.stat().st_size <= LARGEST_MESH:
            found.append(_download(result.mesh_file.name, result.mesh_file.read_bytes(), "application/octet-stream"))
        else:
            remark = f"simplified to {len(small.faces):,} faces, "
            found.append(_download(LIGHT_MESH_FILE, _ply(small), "application/octet-stream", remark))
            size = _size(result.mesh_file.stat().st_size)
            remark = f"all faces, {size}: not in this page, but the file beside it"
            found.append(Download(result.mesh_file.name, quote(result.mesh_file.name), remark))
    for name, kind in (
        (POSES, "application/octet-stream"),
        (METRICS_FILE, "application/json"),
        (VIEWS_FILE, "text/csv"),
    ):
        path = result.folder / name
        if path.is_file():
            found.append(_download(name, path.read_bytes(), kind))
    return render("downloads", found)


def _tables(record: Record, scale: float) -> list[list[tuple[str, str, str]]]:
    """Rows of the table that `pmni eval` prints, grouped by section."""
    table = metrics_table(record, "", scale)
    cells = zip(*([str(cell) for cell in column.cells] for column in table.columns))
    number = np.cumsum([0, *(row.end_section for row in table.rows[:-1])])
    return [[row for row, _ in group] for _, group in groupby(zip(cells, number), key=lambda pair: pair[1])]


def _ply(mesh: trimesh.Trimesh) -> bytes:
    return mesh_bytes(mesh, Path("mesh.ply"))


def _download(name: str, content: bytes, kind: str, remark: str = "") -> Download:
    return Download(name, data_uri(content, kind), remark + _size(len(content)))


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(1, round(count / 1e3))} KB"

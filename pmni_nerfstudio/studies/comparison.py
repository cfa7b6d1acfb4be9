# SPDX-License-Identifier: Apache-2.0
"""HTML page that compares the results of several methods on one scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from pmni_nerfstudio.evaluation.stored_result import read_evaluated_result
from pmni_nerfstudio.geometry.mesh import simplify
from pmni_nerfstudio.report.figures import display_frame, mesh_figure
from pmni_nerfstudio.report.page import Section, figure, note, render, write_page
from pmni_nerfstudio.report.sections import view_gallery
from pmni_nerfstudio.report.strips import errors_deg, scale_end_deg
from pmni_nerfstudio.studies.job import JobResult
from pmni_nerfstudio.studies.summary import columns_of, measure

FACES = 15_000
"""Number of faces of each mesh; a page contains several."""


def write_comparison(path: Path, scene: Path, results: Sequence[JobResult]) -> None:
    """Write the page: a table of metrics, and the rendered views and the mesh of each method.

    Angular errors of all methods share one color scale.

    Args:
        path: HTML file to write.
        scene: folder of the scene on which all methods were trained.
        results: one result per method; failed methods appear only in the table.
    """
    sections = [Section("table", "Metrics", _table(results))]
    evaluated = {r.label: read_evaluated_result(Path(r.folder) / "result") for r in results if r.reason is None}
    errors = {m: errors_deg(e) for m, e in evaluated.items() if e.scene is not None and e.has_maps}
    if errors:
        end = scale_end_deg([error for views in errors.values() for error in views])
        for i, (method, views) in enumerate(errors.items()):
            sections.append(Section(f"views-{i}", method, view_gallery(evaluated[method], views, end)))
    for i, (method, result) in enumerate(evaluated.items()):
        if result.mesh is not None:
            small = simplify(result.mesh, FACES)
            c2w = result.c2w if result.c2w is not None else result.given_c2w
            html = figure(mesh_figure(small, display_frame(small, c2w)))
            sections.append(Section(f"mesh-{i}", f"Mesh: {method}", html))
    write_page(path, f"{scene.name}: comparison of methods", [("scene", str(scene))], sections)


def _table(results: Sequence[JobResult]) -> Markup:
    columns = columns_of(results)
    rows = []
    for result in results:
        values = [measure(result, column) for column in columns]
        rows.append((result.label, ["-" if value is None else f"{value:.3g}" for value in values]))
    failures = Markup("").join(note(f"{r.label}: {r.reason}") for r in results if r.reason is not None)
    return render("comparison", list(columns.values()), rows) + failures

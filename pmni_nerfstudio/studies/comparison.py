# SPDX-License-Identifier: Apache-2.0
"""The page that shows several methods' results side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from pmni_nerfstudio.geometry.mesh import simplify
from pmni_nerfstudio.report.figures import display_frame, mesh_figure
from pmni_nerfstudio.report.outcome import read_outcome
from pmni_nerfstudio.report.page import Section, figure, note, write_page
from pmni_nerfstudio.report.sections import strips_html
from pmni_nerfstudio.report.strips import errors_deg, scale_end_deg
from pmni_nerfstudio.studies.job import Outcome
from pmni_nerfstudio.studies.summary import COLUMNS, value

FACES = 15_000
"""Of each mesh: the page holds several."""


def write_comparison(path: Path, scene: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the page: the table, then each method's views, with one colour scale for the errors of all, and its mesh.

    Args:
        path: of the file.
        scene: that all were trained on.
        outcomes: one a method; those without a result are in the table alone.
    """
    sections = [Section("table", "Measures", _table(outcomes))]
    results = {o.label: read_outcome(Path(o.folder) / "result") for o in outcomes if o.reason is None}
    errors = {m: errors_deg(result) for m, result in results.items() if result.scene is not None and result.has_maps}
    if errors:
        end = scale_end_deg([error for found in errors.values() for error in found])
        for i, (method, found) in enumerate(errors.items()):
            sections.append(Section(f"views-{i}", method, strips_html(results[method], found, end)))
    for i, (method, result) in enumerate(results.items()):
        if result.mesh is not None:
            small = simplify(result.mesh, FACES)
            c2w = result.c2w if result.c2w is not None else result.given_c2w
            drawn = figure(mesh_figure(small, display_frame(small, c2w)))
            sections.append(Section(f"mesh-{i}", f"Mesh: {method}", drawn))
    write_page(path, f"{scene.name}: methods side by side", [("scene", str(scene))], sections)


def _table(outcomes: Sequence[Outcome]) -> Markup:
    units = next((o.metrics["units"] for o in outcomes if o.metrics), "units")
    labels = [label.format(units=units) for _, _, label in COLUMNS.values()]
    head = Markup("").join(Markup("<td class=n>{}</td>").format(label) for label in (*labels, "seconds", "GB"))
    rows = [Markup("<tr><td><b>method</b></td>{}</tr>").format(head)]
    for outcome in outcomes:
        numbers = [value(outcome, column) for column in (*COLUMNS, "seconds", "peak_gb")]
        cells = Markup("").join(
            Markup("<td class=n>{}</td>").format("-" if number is None else f"{number:.3g}") for number in numbers
        )
        rows.append(Markup("<tr><td>{}</td>{}</tr>").format(outcome.label, cells))
    told = Markup("").join(note(f"{o.label}: {o.reason}") for o in outcomes if o.reason is not None)
    return Markup('<div class="card"><table>{}</table></div>{}').format(Markup("").join(rows), told)

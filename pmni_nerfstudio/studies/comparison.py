# SPDX-License-Identifier: Apache-2.0
"""HTML page that compares the results of several methods on one scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import trimesh
from markupsafe import Markup

from pmni_nerfstudio.evaluation.stored_result import StoredResult, read_evaluated_result
from pmni_nerfstudio.geometry.mesh import simplify
from pmni_nerfstudio.report.appearance import baked_normals, vertex_colors
from pmni_nerfstudio.report.figures import Surface, surface_view
from pmni_nerfstudio.report.frames import Frame, display_frame
from pmni_nerfstudio.report.page import Section, figure, note, render, write_page
from pmni_nerfstudio.report.sections import view_gallery
from pmni_nerfstudio.report.strips import errors_deg, scale_end_deg
from pmni_nerfstudio.report.vertex_errors import surface_errors
from pmni_nerfstudio.studies.job import JobResult
from pmni_nerfstudio.studies.summary import columns_of, measure

FACES = 15_000
"""Maximum number of faces of each mesh; a page contains several."""


def write_comparison(path: Path, scene: Path, results: Sequence[JobResult]) -> None:
    """Write the page: a table of metrics, the meshes over each other, and the rendered views of each method.

    Angular errors of all methods share one color scale.

    Args:
        path: HTML file to write.
        scene: folder of the scene on which all methods were trained.
        results: one result per method; failed methods appear only in the table.
    """
    sections = [Section("table", "Metrics", _table(results))]
    evaluated = {r.label: read_evaluated_result(Path(r.folder) / "result") for r in results if r.reason is None}
    meshes = {method: (result, result.mesh) for method, result in evaluated.items() if result.mesh is not None}
    if meshes:
        sections.append(Section("meshes", "Meshes", _meshes(meshes)))
    errors = {m: errors_deg(e) for m, e in evaluated.items() if e.scene is not None and e.has_maps}
    if errors:
        end = scale_end_deg([error for views in errors.values() for error in views])
        for i, (method, views) in enumerate(errors.items()):
            sections.append(Section(f"views-{i}", method, view_gallery(evaluated[method], views, end)))
    write_page(path, f"{scene.name}: comparison of methods", [("scene", str(scene))], sections)


def _meshes(results: Mapping[str, tuple[StoredResult, trimesh.Trimesh]]) -> Markup:
    """3D view of the methods' meshes, two at a time with a slider between them."""
    small = [simplify(mesh, FACES) for _, mesh in results.values()]
    frames = _frames([result for result, _ in results.values()], small)
    errors = surface_errors([(result, mesh) for (result, _), mesh in zip(results.values(), small)])
    surfaces = [
        Surface(
            method,
            mesh,
            frame,
            vertex_errors,
            result.field_volume,
            baked_normals(mesh, full),
            vertex_colors(result, mesh)[0],
        )
        for (method, (result, full)), mesh, frame, vertex_errors in zip(results.items(), small, frames, errors)
    ]
    text = "Drag to rotate, scroll or pinch to zoom."
    if len(surfaces) > 1:
        text += " The slider divides the picture between two methods."
    return note(text) + figure("scene", surface_view(surfaces, alt=f"Meshes of {', '.join(results)}"))


def _frames(results: Sequence[StoredResult], meshes: Sequence[trimesh.Trimesh]) -> list[Frame]:
    """Display frames in which the results lie over each other.

    Results that were aligned to the same ground truth share a frame. Without ground truth, results may be in different
    worlds, and each is centered and turned by itself.
    """
    own = [
        display_frame(mesh, result.c2w if result.c2w is not None else result.given_c2w)
        for result, mesh in zip(results, meshes)
    ]
    if any(result.record["surface"] is None for result in results):
        return own
    similarities = [result.record["similarity"] for result in results]
    to_truth = [np.eye(4) if similarity is None else np.array(similarity) for similarity in similarities]
    return [own[0].after(np.linalg.inv(to_truth[0]) @ similarity) for similarity in to_truth]


def _table(results: Sequence[JobResult]) -> Markup:
    columns = columns_of(results)
    rows = []
    for result in results:
        values = [measure(result, column) for column in columns]
        rows.append((result.label, ["-" if value is None else f"{value:.3g}" for value in values]))
    failures = Markup("").join(note(f"{r.label}: {r.reason}") for r in results if r.reason is not None)
    return render("comparison", list(columns.values()), rows) + failures

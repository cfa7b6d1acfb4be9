# SPDX-License-Identifier: Apache-2.0
"""Errors at the vertices of displayed meshes, with color scales that several results share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import trimesh

from pmni_nerfstudio.evaluation.displayed_result import evaluated_for_display
from pmni_nerfstudio.evaluation.stored_result import StoredResult
from pmni_nerfstudio.report.figures import VertexErrors
from pmni_nerfstudio.report.strips import SCALE_ENDS_DEG

DISTANCE, NORMAL = "distance error", "normal error"


def surface_errors(results: Sequence[tuple[StoredResult, trimesh.Trimesh]]) -> list[list[VertexErrors]]:
    """Errors of evaluated results at the vertices of their displayed meshes.

    Distances to the ground-truth surface where every result has one, and angles between the mesh's normals and those of
    the views that see them where every result has poses and a scene.

    Args:
        results: each result and its displayed mesh.
    """
    displayed = [evaluated_for_display(result, mesh) for result, mesh in results]
    found: list[list[VertexErrors]] = [[] for _ in displayed]
    if displayed and all(each.truth is not None for each in displayed):
        distances = [each.truth_distances for each in displayed]
        end = max(float(np.quantile(values, 0.98)) for values in distances)
        for errors, values, each in zip(found, distances, displayed):
            errors.append(VertexErrors(DISTANCE, values, end, each.units))
    if displayed and all(each.has_cameras for each in displayed):
        angles = [each.normal_errors_deg for each in displayed]
        known = np.concatenate([values[np.isfinite(values)] for values in angles])
        most = float(np.quantile(known, 0.95)) if len(known) else 0.0
        end = next((end for end in SCALE_ENDS_DEG if end >= most), SCALE_ENDS_DEG[-1])
        for errors, values in zip(found, angles):
            errors.append(VertexErrors(NORMAL, values, end, "deg"))
    return found

# SPDX-License-Identifier: Apache-2.0
"""Meshes of trained objects that do not overlap, and one file of the whole scene."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.fields.sdf_field import PmniField
from pmni_nerfstudio.geometry.marching_cubes import extract_mesh
from pmni_nerfstudio.geometry.mesh import transformed_mesh
from pmni_nerfstudio.geometry.transforms import scale_of
from pmni_nerfstudio.objects.contacts import Overlap, Solid, boxes_meet, overlap, separated_sdf
from pmni_nerfstudio.training.trained_run import load_run

_CLEARANCE = 0.25
"""Distance between the surface half-way between two objects and each of them where they are separated, in cells."""
COLORS = (
    (86, 156, 214),
    (230, 159, 0),
    (87, 171, 90),
    (204, 121, 167),
    (213, 94, 0),
    (148, 103, 189),
    (240, 228, 66),
    (120, 120, 120),
)
"""Colors of the objects, RGB from 0 to 255, repeated where there are more objects."""


def load_solid(config: Path) -> Solid:
    """Signed distance of a trained run.

    Raises:
        PmniError: the run cannot be loaded, or belongs to another package's method.
    """
    run = load_run(config)
    field, scene = getattr(run.pipeline.model, "field", None), getattr(run.pipeline.datamanager, "train_dataset").scene
    if not isinstance(field, PmniField):
        raise PmniError(f"{config}: {run.config.method_name} has no signed distance; train with a pmni method")
    return Solid(field.sdf, scene.world_from_unit, next(field.parameters()).device)


def separate_meshes(
    meshes: Mapping[int, trimesh.Trimesh], configs: Mapping[int, Path], resolution: int
) -> tuple[dict[int, trimesh.Trimesh], list[dict[str, Any]]]:
    """Meshes without the overlaps of objects that touch, and a record of each overlap.

    Args:
        meshes: mesh of each object as trained, in the data world.
        configs: config.yml of each object's run.
        resolution: marching cubes cells along the diameter of an object's sphere.

    Returns:
        The meshes, of which only overlapping ones are new; and for each pair of objects that overlapped: "objects", and
        "before" and "after", depth of the overlap in the data's units.

    Raises:
        PmniError: a run cannot be loaded.
    """
    pairs = [(a, b) for a, b in combinations(sorted(meshes), 2) if boxes_meet(meshes[a], meshes[b])]
    solids = {number: load_solid(configs[number]) for number in sorted({n for pair in pairs for n in pair})}
    before = {(a, b): overlap(meshes[a], meshes[b], solids[a], solids[b]) for a, b in pairs}
    touching = {pair: found for pair, found in before.items() if found.vertices}
    result = dict(meshes)
    cut: dict[int, Solid] = {}
    for number in sorted({n for pair in touching for n in pair}):
        partners = [n for pair in touching if number in pair for n in pair if n != number]
        together = [solids[n] for n in (number, *partners)]
        cell = 2 * max(scale_of(solid.world_from_unit) for solid in together) / resolution
        sdf = separated_sdf(together, _CLEARANCE * cell)
        cut[number] = Solid(sdf, solids[number].world_from_unit, solids[number].device)
        mesh = extract_mesh(sdf, resolution, device=solids[number].device)
        result[number] = transformed_mesh(mesh, solids[number].world_from_unit)
    records = []
    for (a, b), found in touching.items():
        after = overlap(result[a], result[b], cut[a], cut[b])
        records.append({"objects": [a, b], "before": _record(found), "after": _record(after)})
    return result, records


def _record(found: Overlap) -> dict[str, Any]:
    return {"vertices": found.vertices, "depth": found.depth}


def write_scene_file(path: Path, meshes: Mapping[int, trimesh.Trimesh]) -> None:
    """Write all objects to one binary glTF file, with a node named object_NUMBER and a color for each, atomically."""
    scene = trimesh.Scene()
    for i, (number, mesh) in enumerate(meshes.items()):
        color = np.array([*COLORS[i % len(COLORS)], 255], dtype=np.uint8)
        material = PBRMaterial(name=f"object_{number}", baseColorFactor=color, metallicFactor=0.0, roughnessFactor=0.8)
        shown = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
        shown.visual = TextureVisuals(material=material)
        scene.add_geometry(shown, node_name=f"object_{number}", geom_name=f"object_{number}")
    content = scene.export(file_type="glb", include_normals=True)
    assert isinstance(content, bytes)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)

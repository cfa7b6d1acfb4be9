# SPDX-License-Identifier: Apache-2.0
"""What a mesh is by itself: whether it is closed, in how many pieces, how large and how curved."""

from __future__ import annotations

from dataclasses import dataclass

import trimesh


@dataclass(frozen=True)
class MeshFacts:
    """Of one mesh, in its own units."""

    vertices: int
    faces: int
    """How many triangles."""
    components: int
    """Pieces not connected by edges."""
    watertight: bool
    """Whether every edge is shared by two faces."""
    self_intersections: int | None
    """Triangles that cut through others; None where MeshLab isn't installed."""
    area: float
    """Units squared."""
    volume: float | None
    """Units cubed; None unless the mesh is watertight."""
    mean_curvature: float
    """Mean over the surface of the mean curvature, one over units, from the angles between neighbouring faces
    (Steiner's formula; Cohen-Steiner and Morvan, 2003): 1/r for a sphere, positive where convex."""


def mesh_facts(mesh: trimesh.Trimesh) -> MeshFacts:
    """Of a mesh whose equal vertices are taken for one (formats without indices repeat them)."""
    mesh = mesh.copy()
    mesh.merge_vertices()
    watertight = bool(mesh.is_watertight)
    return MeshFacts(
        vertices=len(mesh.vertices),
        faces=len(mesh.faces),
        components=int(mesh.body_count),
        watertight=watertight,
        self_intersections=_self_intersections(mesh),
        area=float(mesh.area),
        volume=abs(float(mesh.volume)) if watertight else None,
        mean_curvature=float(mesh.integral_mean_curvature / max(mesh.area, 1e-300)),
    )


def _self_intersections(mesh: trimesh.Trimesh) -> int | None:
    try:
        import pymeshlab
    except ImportError:  # nerfstudio brings it, but for platforms that it has no wheel for
        return None
    meshes = pymeshlab.MeshSet()  # pyright: ignore[reportAttributeAccessIssue]
    meshes.add_mesh(pymeshlab.Mesh(mesh.vertices, mesh.faces))  # pyright: ignore[reportAttributeAccessIssue]
    meshes.compute_selection_by_self_intersections_per_face()
    return int(meshes.current_mesh().selected_face_number())

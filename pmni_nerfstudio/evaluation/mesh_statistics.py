# SPDX-License-Identifier: Apache-2.0
"""Statistics of a mesh that need no ground truth: topology, area, volume and curvature."""

from __future__ import annotations

from dataclasses import dataclass, replace

import trimesh


@dataclass(frozen=True)
class MeshStatistics:
    """Statistics of one mesh, in its own units."""

    vertices: int
    faces: int
    """Number of triangles."""
    components: int
    """Number of connected components."""
    watertight: bool
    """Whether every edge is shared by two faces."""
    self_intersections: int | None
    """Number of triangles that intersect others; None if pymeshlab is not installed."""
    area: float
    """Surface area in units squared."""
    volume: float | None
    """Enclosed volume in units cubed; None unless the mesh is watertight."""
    mean_curvature: float
    """Mean curvature averaged over the surface, in 1/units, from the dihedral angles (Steiner's formula; Cohen-Steiner
    and Morvan, 2003): 1/r for a sphere, positive where convex."""

    def scaled(self, factor: float) -> MeshStatistics:
        """Statistics of the mesh after a change of its size by a factor."""
        volume = None if self.volume is None else self.volume * factor**3
        return replace(self, area=self.area * factor**2, volume=volume, mean_curvature=self.mean_curvature / factor)


def mesh_statistics(mesh: trimesh.Trimesh) -> MeshStatistics:
    """Compute statistics of a mesh; coincident vertices are merged first, since some file formats repeat them."""
    mesh = mesh.copy()
    mesh.merge_vertices()
    watertight = bool(mesh.is_watertight)
    return MeshStatistics(
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
    except ImportError:  # a dependency of nerfstudio, but without wheels for some platforms
        return None
    meshes = pymeshlab.MeshSet()  # pyright: ignore[reportAttributeAccessIssue]
    meshes.add_mesh(pymeshlab.Mesh(mesh.vertices, mesh.faces))  # pyright: ignore[reportAttributeAccessIssue]
    meshes.compute_selection_by_self_intersections_per_face()
    return int(meshes.current_mesh().selected_face_number())

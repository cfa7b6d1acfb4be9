# SPDX-License-Identifier: Apache-2.0
"""Meshes of fewer faces: quadric error metrics (Garland and Heckbert, SIGGRAPH 1997), by Open3D."""

from __future__ import annotations

import numpy as np
import open3d as o3d
import trimesh


def simplify(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
    """The mesh with at most about so many faces; itself if it has no more. Equal vertices must be shared."""
    if faces >= len(mesh.faces):
        return mesh
    full = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(np.asarray(mesh.vertices)), o3d.utility.Vector3iVector(np.asarray(mesh.faces))
    )
    few = full.simplify_quadric_decimation(target_number_of_triangles=faces)
    return trimesh.Trimesh(np.asarray(few.vertices), np.asarray(few.triangles), process=False)

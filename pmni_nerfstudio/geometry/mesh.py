# SPDX-License-Identifier: Apache-2.0
"""Operations on triangle meshes: transforming, simplifying, removing small components."""

from __future__ import annotations

import numpy as np
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pmni_nerfstudio.geometry.transforms import transform_points


def transformed_mesh(mesh: trimesh.Trimesh, similarity: np.ndarray) -> trimesh.Trimesh:
    """A mesh moved by a similarity (4, 4) without reflection, as from the unit-sphere world to the data world."""
    return trimesh.Trimesh(transform_points(similarity, mesh.vertices), mesh.faces, process=False)


def simplify(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
    """Simplify a mesh by quadric error metrics (Garland and Heckbert, SIGGRAPH 1997), through Open3D.

    Args:
        mesh: mesh whose faces share vertices.
        faces: target number of faces; a mesh that has no more is returned as it is.
    """
    import open3d as o3d  # takes seconds to load

    if faces >= len(mesh.faces):
        return mesh
    # The squares of coordinates far from the origin would exceed double precision.
    origin = mesh.bounds.mean(axis=0)
    full = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(np.asarray(mesh.vertices) - origin),
        o3d.utility.Vector3iVector(np.asarray(mesh.faces)),
    )
    few = full.simplify_quadric_decimation(target_number_of_triangles=faces)
    return trimesh.Trimesh(np.asarray(few.vertices) + origin, np.asarray(few.triangles), process=False)


def keep_large_components(mesh: trimesh.Trimesh, share: float) -> trimesh.Trimesh:
    """Remove connected components whose area is less than a share of the largest component's area."""
    faces = mesh.faces
    adjacency = coo_matrix(
        (np.ones(2 * len(faces), dtype=bool), (faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel())),
        shape=(len(mesh.vertices),) * 2,
    )
    count, labels = connected_components(adjacency, directed=False)
    if count == 1:
        return mesh
    face_labels = labels[faces[:, 0]]
    areas = np.bincount(face_labels, weights=mesh.area_faces, minlength=count)
    kept = areas >= share * areas.max()
    vertices = kept[labels]
    new_index = np.cumsum(vertices) - 1
    return trimesh.Trimesh(mesh.vertices[vertices], new_index[faces[kept[face_labels]]], process=False)

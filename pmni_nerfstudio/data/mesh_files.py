# SPDX-License-Identifier: Apache-2.0
"""Encoding of meshes without loss of precision far from the origin, as in map coordinates (UTM) or ECEF.

trimesh writes single precision, whose steps are half a meter at five million meters. Such meshes get double precision in
PLY, more digits in OBJ, and in GLB the position of the mesh in the transform of its node.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from trimesh.visual import ColorVisuals

from pmni_nerfstudio.errors import PmniError

_MAX_STEP = 2e-6
"""Largest step of single precision at the mesh, as a fraction of its extent, that needs no measures."""


def mesh_bytes(mesh: trimesh.Trimesh, path: Path) -> bytes:
    """Content of a file in the format of the path's suffix.

    Raises:
        PmniError: The format has single precision, which does not resolve a mesh so far from the origin.
    """
    suffix = path.suffix.lower()
    if not is_far_away(np.asarray(mesh.vertices)):
        return _exported(mesh, suffix)
    if suffix == ".ply":
        return _double_ply(mesh)
    if suffix == ".obj":
        return _exported(mesh, suffix, digits=_decimals(mesh))
    if suffix == ".glb":
        matrix = np.eye(4)
        matrix[:3, 3] = np.round(mesh.bounds.mean(axis=0))
        near = mesh.copy()
        near.apply_translation(-matrix[:3, 3])
        scene = trimesh.Scene()
        scene.add_geometry(near, transform=matrix)
        return _exported(scene, suffix)
    raise PmniError(
        f"{path}: {suffix} has single precision, which does not resolve an object at "
        f"{', '.join(f'{value:.6g}' for value in mesh.bounds.mean(axis=0))}; write .ply, .obj or .glb"
    )


def is_far_away(vertices: np.ndarray) -> bool:
    """Whether vertices (V, 3) are too far from the origin for single precision."""
    if not len(vertices):
        return False
    step = float(np.spacing(np.float32(np.abs(vertices).max())))
    return step > _MAX_STEP * float(np.ptp(vertices, axis=0).max())


def _decimals(mesh: trimesh.Trimesh) -> int:
    """Digits after the decimal point that resolve a ten-millionth of the mesh's extent."""
    return max(8, int(np.ceil(7 - np.log10(max(float(mesh.extents.max()), 1e-12)))))


def _exported(mesh: trimesh.Trimesh | trimesh.Scene, suffix: str, **options) -> bytes:
    """Content of a file as trimesh writes it."""
    content = mesh.export(file_type=suffix.removeprefix("."), **options)
    assert isinstance(content, (str, bytes))
    return content.encode("utf-8") if isinstance(content, str) else content


def _double_ply(mesh: trimesh.Trimesh) -> bytes:
    """A binary PLY file with vertices in double precision, and vertex colors if the mesh has any."""
    fields: list[tuple[str, str]] = [(axis, "<f8") for axis in "xyz"]
    colors = (
        mesh.visual.vertex_colors if isinstance(mesh.visual, ColorVisuals) and mesh.visual.kind == "vertex" else None
    )
    if colors is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue", "alpha")]
    vertices = np.empty(len(mesh.vertices), dtype=fields)
    for axis, column in zip("xyz", np.asarray(mesh.vertices).T):
        vertices[axis] = column
    if colors is not None:
        for (name, _), column in zip(fields[3:], np.asarray(colors).T):
            vertices[name] = column
    faces = np.empty(len(mesh.faces), dtype=[("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, mesh.faces
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {len(vertices)}",
        *(f"property {'double' if kind == '<f8' else 'uchar'} {name}" for name, kind in fields),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header\n",
    ]
    return "\n".join(header).encode("ascii") + vertices.tobytes() + faces.tobytes()

# SPDX-License-Identifier: Apache-2.0
"""Binary glTF 2.0 file of a mesh at several moments: one node for each, shown one after another.

The meshes share no triangles, so that they cannot be morph targets of one mesh. Each node's scale is animated in steps
instead: 1 while it is shown, 0 otherwise. Readers without animations show the first moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from pmni_nerfstudio.export.gltf import Buffer, write_tree


def write_animated_glb(path: Path, meshes: Mapping[str, trimesh.Trimesh], frames_per_second: float) -> None:
    """Write meshes as one animation, atomically.

    Args:
        path: .glb file.
        meshes: mesh of each moment by its name, in order and in one world.
        frames_per_second: moments shown in a second.

    Raises:
        PmniError: the file can't be written.
    """
    buffer, count = Buffer(), len(meshes)
    # Single precision does not resolve meshes far from the origin: a common parent holds their position.
    center = np.mean([mesh.bounds.mean(axis=0) for mesh in meshes.values()], axis=0)
    nodes: list[dict[str, Any]] = []
    descriptions, samplers, channels = [], [], []
    for i, (name, mesh) in enumerate(meshes.items()):
        attributes = {
            "POSITION": buffer.add_vertices(mesh.vertices - center, bounds=True),
            "NORMAL": buffer.add_vertices(_unit_normals(mesh)),
        }
        primitive = {"attributes": attributes, "indices": buffer.add_indices(mesh.faces), "material": 0}
        descriptions.append({"name": name, "primitives": [primitive]})
        nodes.append({"name": name, "mesh": i, "scale": [float(i == 0)] * 3})
        times = np.unique([0, i, min(i + 1, count - 1), count]) / frames_per_second
        shown = np.array([i <= round(time * frames_per_second) < i + 1 for time in times], dtype=float)
        if i == count - 1:
            shown[-1] = 1.0  # the last one stays until the end
        output = buffer.add_values(np.repeat(shown[:, None], 3, axis=1))
        samplers.append({"input": buffer.add_times(times), "interpolation": "STEP", "output": output})
        channels.append({"sampler": i, "target": {"node": i, "path": "scale"}})
    root = {"name": "sequence", "children": list(range(count)), "translation": center.tolist()}
    tree: dict[str, Any] = {
        "scene": 0,
        "scenes": [{"nodes": [count]}],
        "nodes": [*nodes, root],
        "meshes": descriptions,
        "materials": [
            {
                "name": "surface",
                "pbrMetallicRoughness": {
                    "baseColorFactor": [0.8, 0.8, 0.8, 1.0],
                    "metallicFactor": 0.0,
                    "roughnessFactor": 0.8,
                },
            }
        ],
        "animations": [{"name": "sequence", "samplers": samplers, "channels": channels}],
    }
    write_tree(path, tree, buffer)


def _unit_normals(mesh: trimesh.Trimesh) -> np.ndarray:
    """Vertex normals of unit length, as glTF demands; those of vertices without area point along z."""
    normals = np.array(mesh.vertex_normals, dtype=np.float64)
    length = np.linalg.norm(normals, axis=1)
    normals[length < 1e-6] = (0, 0, 1)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)

# SPDX-License-Identifier: Apache-2.0
"""Wavefront OBJ files of a textured mesh, with the material and its textures beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.mesh_files import is_far_away
from pmni_nerfstudio.export.atlas import Atlas
from pmni_nerfstudio.export.gltf import GltfMaterial


def write_obj(path: Path, atlas: Atlas, material: GltfMaterial) -> list[Path]:
    """Write a level of detail in the data's axes and units: NAME.obj, NAME.mtl and textures NAME_*.png or .jpg.

    Args:
        path: .obj file.
        atlas: level of detail with its texture atlas.
        material: its textures. Ambient occlusion is left out, for which the format has no entry.

    Returns:
        The files.

    Raises:
        PmniError: A file can't be written.
    """
    files = [path, path.with_suffix(".mtl")]
    lines = [f"newmtl {path.stem}", "Kd 1 1 1" if material.base_color else "Kd 0.8 0.8 0.8", "Ks 0 0 0", "illum 1"]
    # Entries for roughness and metallic that Blender reads.
    lines += [f"Pr {material.reflectance.roughness:g}", f"Pm {material.reflectance.metallic:g}"]
    # `norm` is the entry for tangent-space normal maps that Blender and three.js read.
    for entry, name, image in (("map_Kd", "color", material.base_color), ("norm", "normal", material.normal)):
        if image is not None:
            suffix = "png" if image.startswith(b"\x89PNG") else "jpg"
            files.append(path.with_name(f"{path.stem}_{name}.{suffix}"))
            lines.append(f"{entry} {files[-1].name}")
            _write(files[-1], image)
    _write(files[1], ("\n".join(lines) + "\n").encode("utf-8"))
    mesh, corners = atlas.mesh, np.repeat(np.asarray(atlas.mesh.faces) + 1, 3, axis=1)
    digits = 16 if is_far_away(np.asarray(mesh.vertices)) else 9
    parts = [
        f"mtllib {files[1].name}\nusemtl {path.stem}\n",
        _rows(f"v %.{digits}g %.{digits}g %.{digits}g\n", mesh.vertices),
        _rows("vt %.7g %.7g\n", atlas.uv),
        _rows("vn %.6g %.6g %.6g\n", mesh.vertex_normals),
        _rows("f %d/%d/%d %d/%d/%d %d/%d/%d\n", corners),
    ]
    _write(path, "".join(parts).encode("ascii"))
    return files


def _rows(template: str, values: np.ndarray) -> str:
    return (template * len(values)) % tuple(np.asarray(values).ravel().tolist())


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)

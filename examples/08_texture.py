# SPDX-License-Identifier: Apache-2.0
"""Color a mesh from the scene's photographs, by vertex colors and by a texture.

    python examples/08_texture.py SCENE RESULT OUT

Needs the SCENE folder of a training run, with photographs image/NN.png named like its views, and the RESULT folder that
`pmni export` wrote for it. Writes OUT/coloured.ply, the full mesh with vertex colors, and OUT/textured.glb, a simplified
mesh with a texture image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro
from trimesh.visual import ColorVisuals

from pmni_nerfstudio.data.result_files import read_mesh, read_poses, write_mesh
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import exit_on_error
from pmni_nerfstudio.export.texture import read_photographs, surface_colors, texture_mesh
from pmni_nerfstudio.geometry.mesh import simplify


def main(
    scene_folder: tyro.conf.Positional[Path],
    result: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    /,
    faces: int = 20_000,
    size: int = 1024,
) -> None:
    """Color the mesh.

    Args:
        scene_folder: scene folder.
        result: folder that `pmni export` wrote for the scene.
        out: output folder, created if necessary.
        faces: number of faces of the textured mesh.
        size: approximate side length of the texture in pixels.
    """
    scene = read_scene(scene_folder)
    mesh = read_mesh(result / "mesh.ply")
    poses = read_poses(result / "poses.npy", scene.num_views)
    out.mkdir(parents=True, exist_ok=True)

    vertices, normals = np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals)
    colors, seen = surface_colors(mesh, vertices, normals, read_photographs(scene, poses))
    mesh.visual = ColorVisuals(mesh, vertex_colors=colors)
    write_mesh(out / "coloured.ply", mesh)

    simplified = texture_mesh(simplify(mesh, faces), read_photographs(scene, poses), size)
    write_mesh(out / "textured.glb", simplified)
    print(f"wrote coloured.ply and textured.glb ({len(simplified.faces):,} faces) to {out}")
    print(
        f"{seen.mean():.1%} of the vertices are seen in a photograph; the others get the color of the nearest of them"
    )


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main)

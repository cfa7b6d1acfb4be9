# SPDX-License-Identifier: Apache-2.0
"""A result's mesh in the colours of the scene's photographs: at its vertices, and as a texture.

    python examples/08_texture.py SCENE RESULT OUT

SCENE has photographs in image/, named as its views; RESULT is what `pmni export` wrote for it. In OUT: coloured.ply,
the full mesh with a colour at each vertex, and textured.glb, fewer faces with a texture image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro
from trimesh.visual import ColorVisuals

from pmni_nerfstudio.data.result_files import read_mesh, read_poses, write_mesh
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import exit_on_error
from pmni_nerfstudio.export.texture import read_photographs, surface_colours, textured
from pmni_nerfstudio.geometry.mesh import simplify


def main(
    scene_folder: tyro.conf.Positional[Path],
    result: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    /,
    faces: int = 20_000,
    size: int = 1024,
) -> None:
    """Colour the mesh.

    Args:
        scene_folder: the scene.
        result: what `pmni export` wrote for it.
        out: folder to write to.
        faces: of the textured mesh.
        size: about the texture's side in pixels.
    """
    scene = read_scene(scene_folder)
    mesh = read_mesh(result / "mesh.ply")
    poses = read_poses(result / "poses.npy", scene.num_views)
    out.mkdir(parents=True, exist_ok=True)

    vertices, normals = np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals)
    colours, seen = surface_colours(mesh, vertices, normals, read_photographs(scene, poses))
    mesh.visual = ColorVisuals(mesh, vertex_colors=colours)
    write_mesh(out / "coloured.ply", mesh)

    few = textured(simplify(mesh, faces), read_photographs(scene, poses), size)
    write_mesh(out / "textured.glb", few)
    print(f"wrote coloured.ply and textured.glb ({len(few.faces):,} faces) to {out}")
    print(f"{seen.mean():.1%} of the vertices are seen by a photograph; the others have the nearest one's colour")


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main)

# SPDX-License-Identifier: Apache-2.0
"""Draw input normals, rendered normals, angular error and the shaded mesh of some views in one picture.

    python examples/01_picture.py SCENE RESULT picture.png

Needs the SCENE folder of a training run, and the RESULT folder that `pmni export --maps` wrote for it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro

from pmni_nerfstudio.data.images import read_normals
from pmni_nerfstudio.data.result_files import read_mesh, read_poses
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import exit_on_error
from pmni_nerfstudio.evaluation.picture import comparison_picture
from pmni_nerfstudio.geometry.transforms import flip_y_and_z


def main(
    scene_folder: tyro.conf.Positional[Path],
    result: tyro.conf.Positional[Path],
    picture: tyro.conf.Positional[Path],
    /,
    views: int = 4,
) -> None:
    """Draw the picture.

    Args:
        scene_folder: scene folder.
        result: folder that `pmni export --maps` wrote for the scene.
        picture: PNG file to write.
        views: number of views to show.
    """
    scene = read_scene(scene_folder)
    mesh = read_mesh(result / "mesh.ply")
    poses = read_poses(result / "poses.npy", scene.num_views)
    chosen = np.linspace(0, scene.num_views, views, endpoint=False).astype(int)
    shown = []
    for i in chosen:
        rendered = flip_y_and_z(read_normals(result / "normal_camera_space" / f"{scene.names[i]}.exr"))
        shown.append({"input": scene.normals[i].astype(np.float32), "rendered": rendered, "mask": scene.masks[i]})
    title = f"{len(chosen)} of {scene.num_views} views of {scene.width}x{scene.height}"
    comparison_picture(picture, shown, mesh, poses[chosen], scene.K[0], title)
    print(f"wrote {picture}")


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main)

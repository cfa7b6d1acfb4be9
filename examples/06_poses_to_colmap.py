# SPDX-License-Identifier: Apache-2.0
"""Write refined poses as a COLMAP text model and as nerfstudio's transforms.json, e.g. for Gaussian splatting.

    python examples/06_poses_to_colmap.py SCENE RESULT OUT

Needs the SCENE folder of a training run, and the RESULT folder that `pmni export` wrote for it. Writes OUT/sparse/0 with
cameras.txt, images.txt and points3D.txt (points on the mesh), and OUT/transforms.json. Images are named relative to
SCENE, which is COLMAP's image folder. COLMAP's poses are world-to-camera, with quaternions w x y z and pixel centers at
+0.5.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import tyro
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.result_files import read_mesh, read_poses
from pmni_nerfstudio.data.scene import read_scene
from pmni_nerfstudio.errors import exit_on_error
from pmni_nerfstudio.export.cameras import TRANSFORMS, file_intrinsics, nerfstudio_transforms


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(
    scene_folder: tyro.conf.Positional[Path],
    result: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    /,
    points: int = 20_000,
) -> None:
    """Write both formats.

    Args:
        scene_folder: scene folder.
        result: folder that `pmni export` wrote for the scene.
        out: output folder, created if necessary.
        points: number of points on the mesh in points3D.txt.
    """
    scene = read_scene(scene_folder)
    poses = read_poses(result / "poses.npy", scene.num_views)
    samples = np.asarray(read_mesh(result / "mesh.ply").sample(points, seed=0))
    K, sizes = file_intrinsics(scene)
    model = out / "sparse" / "0"
    model.mkdir(parents=True, exist_ok=True)
    nerfstudio = nerfstudio_transforms(scene, poses, out)
    write_lines(out / TRANSFORMS, [json.dumps(nerfstudio, indent=1)])

    # Views with equal intrinsics and size share a camera.
    pinholes = [(*size, k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5) for size, k in zip(sizes, K.round(6))]
    cameras, camera = np.unique(pinholes, axis=0, return_inverse=True)
    write_lines(
        model / "cameras.txt",
        [
            f"{i + 1} PINHOLE {width:.0f} {height:.0f} {fx!r} {fy!r} {cx!r} {cy!r}"
            for i, (width, height, fx, fy, cx, cy) in enumerate(cameras.tolist())
        ],
    )
    w2c = np.linalg.inv(poses)
    quaternions = np.roll(Rotation.from_matrix(w2c[:, :3, :3]).as_quat(), 1, axis=1)  # SciPy's quaternions are x y z w
    lines = []
    for i, frame in enumerate(nerfstudio["frames"]):
        numbers = " ".join(repr(float(x)) for x in (*quaternions[i], *w2c[i, :3, 3]))
        name = os.path.relpath((out / frame["file_path"]).resolve(), scene_folder.resolve())
        lines += [f"{i + 1} {numbers} {camera[i] + 1} {name}", ""]  # the second line lists feature points
    write_lines(model / "images.txt", lines)
    rows = [f"{i + 1} {x:.9g} {y:.9g} {z:.9g} 128 128 128 0" for i, (x, y, z) in enumerate(samples)]
    write_lines(model / "points3D.txt", rows)
    print(
        f"wrote {scene.num_views} poses, {len(pinholes)} camera(s) and {points:,} points to {model}, and {TRANSFORMS}"
    )


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main)

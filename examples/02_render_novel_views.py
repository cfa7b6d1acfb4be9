# SPDX-License-Identifier: Apache-2.0
"""Render a turntable around the object, from novel views of a trained run, and animate it.

    python examples/02_render_novel_views.py CONFIG OUT

Needs the config.yml (CONFIG) of a training run. Writes OUT/rgb, OUT/normals and OUT/depth (NNN.png), turntable.gif, and the
cameras: poses.npy (camera-to-world in the data world, OpenCV axes) and intrinsics.npy (pixel centers at integers).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from rich.progress import track
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.dataparser import nerfstudio_cameras
from pmni_nerfstudio.data.dataset import PmniDataset
from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.data.resample import resample_intrinsics, resampled_size
from pmni_nerfstudio.errors import PmniError, exit_on_error
from pmni_nerfstudio.export.maps import depth_preview
from pmni_nerfstudio.geometry.normals import normals_to_rgb
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.model.pmni_model import PmniModel
from pmni_nerfstudio.training.trained_run import load_run


def turntable(c2w: np.ndarray, views: int) -> np.ndarray:
    """Poses (views, 4, 4) of a full turn of the first camera around the origin, about the mean up vector of all cameras.

    Args:
        c2w: (N, 4, 4) poses, OpenCV axes.
        views: number of poses.
    """
    up = -c2w[:, :3, 1].mean(axis=0)
    turns = np.tile(np.eye(4), (views, 1, 1))
    angles = 2 * np.pi * np.arange(views) / views
    turns[:, :3, :3] = Rotation.from_rotvec(angles[:, None] * up / np.linalg.norm(up)).as_matrix()
    return turns @ c2w[0]


def main(
    config: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path], /, views: int = 36, scale: float = 1.0
) -> None:
    """Render the turntable.

    Args:
        config: config.yml of the run.
        out: output folder, created if necessary.
        views: number of views, evenly spaced around the circle.
        scale: size of the images relative to the scene's maps; 2 doubles width and height.
    """
    run = load_run(config)
    model, dataset = run.pipeline.model, run.pipeline.datamanager.train_dataset
    if not (isinstance(model, PmniModel) and isinstance(dataset, PmniDataset)):
        raise PmniError(f"{config}: is a run of {run.config.method_name}; give a run of a pmni method")
    scene = dataset.scene
    width, height = resampled_size(scene.width, scene.height, scale)
    K = resample_intrinsics(scene.K[0], (scene.width, scene.height), (width, height))
    c2w = turntable(model.camera_optimizer.c2w_opencv_double(), views)
    # Without cam_idx no pose correction of a training view is applied.
    cameras = nerfstudio_cameras(np.tile(K, (views, 1, 1)), c2w, width, height, cam_idx=False)

    for name in ("rgb", "normals", "depth"):
        (out / name).mkdir(parents=True, exist_ok=True)
    frames = []
    for i in track(range(views), "Rendering"):
        outputs = {key: value.cpu() for key, value in model.render_camera(cameras[i : i + 1]).items()}
        hit = outputs["accumulation"] > 0.5
        rgb = (outputs["rgb"] * 255).byte().numpy()
        normals = (normals_to_rgb(outputs["normals_camera"], hit) * 255).byte().numpy()
        depth = depth_preview((outputs["depth"] * hit)[..., 0].numpy())
        for name, picture in (("rgb", rgb), ("normals", normals), ("depth", depth)):
            write_png(out / name / f"{i:03d}.png", picture)
        frames.append(Image.fromarray(np.hstack([rgb, normals, np.repeat(depth[..., None], 3, axis=2)])))
    with atomic_path(out / "turntable.gif") as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=3600 / views, loop=0)
    for name, array in (("poses", transform_poses(scene.world_from_unit, c2w)), ("intrinsics", K)):
        with atomic_path(out / f"{name}.npy") as temporary:
            np.save(temporary, array)
    print(f"wrote {views} views of {width}x{height} and turntable.gif to {out}")


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main)

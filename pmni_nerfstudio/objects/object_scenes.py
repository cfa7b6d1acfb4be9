# SPDX-License-Identifier: Apache-2.0
"""Scene folders of single objects, with the poses that all of them determined together."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.atomic import replaced_folders
from pmni_nerfstudio.data.npz import hash_array
from pmni_nerfstudio.data.scene import IMAGES, Scene
from pmni_nerfstudio.data.scene_writer import write_scene
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.objects.object_views import ObjectViews

NORMALS = "normal_camera_space_measured"


def object_scene_folder(parent: Path, scene: Scene, c2w: np.ndarray, views: ObjectViews) -> Path:
    """Place of the scene of an object, which depends on what it holds: what was trained on other data is not taken for it."""
    digest = hashlib.sha256()
    arrays = (
        scene.normals[views.views],
        views.masks,
        views.unknown,
        views.sphere,
        scene.K[views.views],
        c2w[views.views],
    )
    for array in arrays:
        hash_array(digest, array)
    return parent / f"object_{views.number}_{digest.hexdigest()[:8]}"


def write_object_scene(folder: Path, scene: Scene, c2w: np.ndarray, views: ObjectViews) -> None:
    """Write a scene folder of one object, as a whole or not at all.

    Args:
        folder: folder to write, which does not exist.
        scene: scene of all objects, with the intrinsics that belong to the poses.
        c2w: (N, 4, 4) poses of all its views, camera to unit-sphere world, OpenCV axes.
        views: views of the object.
    """
    chosen = views.views
    normals = np.where(views.masks[..., None], scene.normals[chosen], 0).astype(np.float32)
    with replaced_folders([folder]) as (new,):
        write_scene(
            new,
            names=[scene.names[view] for view in chosen],
            K=scene.K[chosen],
            c2w=transform_poses(np.linalg.inv(views.sphere), c2w[chosen]),
            world_from_unit=scene.world_from_unit @ views.sphere,
            masks=views.masks,
            normals=normals,
            normals_folder=NORMALS,
            unknown=views.unknown,
            sizes=None if scene.sizes is None else scene.sizes[chosen],
        )
        if scene.image_files is not None:
            (new / IMAGES).mkdir()
            for view in chosen:
                image = scene.image_files[view]
                os.symlink(image.resolve(), new / IMAGES / image.name)

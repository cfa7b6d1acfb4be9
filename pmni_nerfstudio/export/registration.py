# SPDX-License-Identifier: Apache-2.0
"""Files of a registration result, in the data world: camera poses, surface mesh and statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trimesh

from pmni_nerfstudio.data.atomic import write_json
from pmni_nerfstudio.data.result_files import write_mesh
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.export.cameras import write_result_cameras
from pmni_nerfstudio.geometry.mesh import keep_large_components, transformed_mesh
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.registration.pipeline import Registration
from pmni_nerfstudio.registration.statistics import STATISTICS, registration_statistics

SURFACE = "surface.ply"
PICTURE = "registration.png"


def write_registration(folder: Path, scene: Scene, registration: Registration) -> list[Path]:
    """Write poses.npy, cameras_refined.npz, transforms.json, surface.ply and registration.json, each atomically.

    The cameras have the refined intrinsics; registration.json holds the given ones as well.

    Args:
        folder: existing output folder.
        scene: scene that was registered, with its given intrinsics.
        registration: result for all views of the scene, in the unit-sphere world.

    Returns:
        The files written.
    """
    corrected = replace(scene, K=registration.intrinsics.corrected(scene.K))
    files = write_result_cameras(folder, corrected, transform_poses(scene.world_from_unit, registration.c2w))
    vertices, faces = registration.surface.mesh
    mesh = keep_large_components(trimesh.Trimesh(vertices, faces, process=False), 0.02)
    write_mesh(folder / SURFACE, transformed_mesh(mesh, scene.world_from_unit))
    write_json(folder / STATISTICS, registration_statistics(registration, scene.names, scene.full_K))
    return [*files, folder / SURFACE, folder / STATISTICS]

# SPDX-License-Identifier: Apache-2.0
"""What is to be evaluated: the mesh and poses of a trained run, or of files, and how to see its normals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import trimesh

from pmni_nerfstudio.data.result_files import read_mesh, read_poses
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.ground_truth import are_given
from pmni_nerfstudio.geometry.ray_casting import RayCaster, camera_normals
from pmni_nerfstudio.geometry.transforms import transform_poses

if TYPE_CHECKING:
    from pmni_nerfstudio.export.maps import RenderedView
    from pmni_nerfstudio.training.trained_run import Device, Run


@dataclass(frozen=True, eq=False)
class Result:
    """In the data's world and units; poses are camera-to-world, OpenCV axes."""

    source: Path
    """The mesh's file, or the run's config.yml."""
    mesh: trimesh.Trimesh
    c2w: np.ndarray | None
    """(N, 4, 4) of the scene's views; None where there are none."""
    trained: np.ndarray
    """(N,) bool, views whose poses are the result's own; the others' are given ones, in another world it may be."""
    calibrated: bool
    """Whether poses were given and not found, so that there is nothing to be aligned."""
    method: str | None
    render: Callable[[np.ndarray], Iterator[RenderedView]]
    """Of all the scene's views at poses (N, 4, 4)."""


def result_of_files(mesh_file: Path, poses_file: Path | None, scene: Scene | None, num_views: int) -> Result:
    """A mesh and poses from files; normals are the mesh's own, where a scene says what its cameras are.

    Raises:
        PmniError: a file is missing or broken.
    """
    mesh = read_mesh(mesh_file)
    c2w = None if poses_file is None else read_poses(poses_file, num_views)
    return Result(mesh_file, mesh, c2w, np.ones(num_views, dtype=bool), False, None, _mesh_renderer(mesh, scene))


def result_of_run(run: Run, resolution: int, max_memory: int | None = None) -> tuple[Scene, Result]:
    """A trained run's scene and what came out of it.

    Args:
        run: as loaded.
        resolution: cells of marching cubes along the diameter of the scene's sphere.
        max_memory: bytes that a chunk of points or rays may take, beside what is loaded; None: no bound.

    Raises:
        PmniError: no run of ours, nor of a surface model that was given our scene, or too little memory.
    """
    from pmni_nerfstudio.data.dataset import PmniDataset
    from pmni_nerfstudio.export.cameras import all_poses
    from pmni_nerfstudio.export.maps import bound_rays, rendered
    from pmni_nerfstudio.geometry.marching_cubes import extract_mesh
    from pmni_nerfstudio.geometry.mesh import transformed_mesh
    from pmni_nerfstudio.model.pmni_model import PmniModel

    model, dataset = run.pipeline.model, run.pipeline.datamanager.train_dataset
    if not (isinstance(model, PmniModel) and isinstance(dataset, PmniDataset)):
        return _result_of_stock_run(run, resolution, max_memory)
    scene, poses = dataset.scene, model.camera_optimizer
    bound_rays(model, max_memory)
    mesh = extract_mesh(model.field.sdf, resolution, device=model.device, max_memory=max_memory)
    mesh = transformed_mesh(mesh, scene.world_from_unit)
    c2w = transform_poses(scene.world_from_unit, all_poses(scene, dataset.views, poses.c2w_opencv_double()))
    trained = np.zeros(scene.num_views, dtype=bool)
    trained[list(dataset.views)] = True

    def render(at: np.ndarray) -> Iterator[RenderedView]:
        from pmni_nerfstudio.data.dataparser import nerfstudio_cameras

        unit = transform_poses(np.linalg.inv(scene.world_from_unit), at)
        cameras = nerfstudio_cameras(scene.K, unit, scene.width, scene.height, cam_idx=False)
        return rendered(model, cameras, scene.world_from_unit)

    return scene, Result(run.config_path, mesh, c2w, trained, not poses.learns, run.config.method_name, render)


def _result_of_stock_run(run: Run, resolution: int, max_memory: int | None) -> tuple[Scene, Result]:
    from pmni_nerfstudio.baselines.surface import stock_mesh, stock_scene

    scene, c2w = stock_scene(run.pipeline)
    mesh = stock_mesh(run.pipeline, resolution, max_memory=max_memory)
    every = np.ones(scene.num_views, dtype=bool)
    # Poses that were found, and given to `pmni convert`, are in a world of their own.
    calibrated = are_given(c2w, scene)
    return scene, Result(
        run.config_path, mesh, c2w, every, calibrated, run.config.method_name, _mesh_renderer(mesh, scene)
    )


def load_result(config: Path, resolution: int, device: Device, max_memory: int | None = None) -> tuple[Scene, Result]:
    """`result_of_run` of a config.yml."""
    from pmni_nerfstudio.training.trained_run import load_run

    return result_of_run(load_run(config, device), resolution, max_memory)


def _mesh_renderer(mesh: trimesh.Trimesh, scene: Scene | None) -> Callable[[np.ndarray], Iterator[RenderedView]]:
    def render(at: np.ndarray) -> Iterator[RenderedView]:
        if scene is None:
            raise PmniError("a mesh's normals are compared with a scene's: give --data")
        rays = RayCaster(mesh)
        for K, pose in zip(scene.K, at):
            yield mesh_view(mesh, rays, K, pose, scene.width, scene.height)

    return render


def mesh_view(
    mesh: trimesh.Trimesh, rays: RayCaster, K: np.ndarray, c2w: np.ndarray, width: int, height: int
) -> RenderedView:
    """`camera_normals`, with depths as maps have them: 0 where the mesh isn't seen."""
    from pmni_nerfstudio.export.maps import RenderedView

    normals, distance = camera_normals(mesh, rays, K, c2w, width, height)
    return RenderedView(normals, np.where(np.isfinite(distance), distance, 0).astype(np.float32))

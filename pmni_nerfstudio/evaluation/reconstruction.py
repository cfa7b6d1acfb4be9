# SPDX-License-Identifier: Apache-2.0
"""Mesh and poses to be evaluated, from a trained run or from files, with a renderer of their normals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import trimesh

from pmni_nerfstudio.data.result_files import read_mesh, read_poses
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.ground_truth import poses_are_given
from pmni_nerfstudio.geometry.ray_casting import RayCaster, camera_normals
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.registration.statistics import read_verdict, verdict_record

if TYPE_CHECKING:
    from pmni_nerfstudio.export.field_volume import FieldVolume
    from pmni_nerfstudio.export.maps import RenderedView
    from pmni_nerfstudio.training.trained_run import Device, Run

Renderer = Callable[[np.ndarray], Iterator["RenderedView"]]
"""Renders all views of the scene at poses (N, 4, 4) in the data's world, OpenCV axes."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Mesh and poses to be evaluated, in the data's world and units; poses are camera-to-world, OpenCV axes."""

    source: Path
    """File of the mesh, or config.yml of the run."""
    mesh: trimesh.Trimesh
    c2w: np.ndarray | None
    """(N, 4, 4) poses of the scene's views, or None."""
    trained: np.ndarray
    """(N,) bool, views used in training. The poses of the others are the given ones, possibly in another world."""
    calibrated: bool
    """Whether the poses were given rather than estimated, so that no alignment is needed."""
    method: str | None
    """Name of the method, if known."""
    render: Renderer
    registration: dict[str, Any] | None = None
    """Verdict of the registration (see `verdict_record`), if one is known."""
    sample_field: Callable[[], FieldVolume] | None = None
    """Samples the signed distance field; None if there is none, as for meshes from files."""


def reconstruction_from_files(
    mesh_file: Path, poses_file: Path | None, scene: Scene | None, num_views: int
) -> Reconstruction:
    """Read a mesh and poses from files; normals are rendered from the mesh with the scene's cameras.

    A registration.json beside the mesh gives the verdict of the registration.

    Raises:
        PmniError: A file is missing or invalid.
    """
    mesh = read_mesh(mesh_file)
    c2w = None if poses_file is None else read_poses(poses_file, num_views)
    trained = np.ones(num_views, dtype=bool)
    registration = read_verdict(mesh_file.parent)
    return Reconstruction(mesh_file, mesh, c2w, trained, False, None, _mesh_renderer(mesh, scene), registration)


def reconstruction_from_run(
    config: Path, resolution: int, device: Device, max_memory: int | None = None, data: Path | None = None
) -> tuple[Scene, Reconstruction]:
    """Load a trained run and extract its mesh and poses.

    Args:
        config: config.yml of the run.
        resolution: Cells of marching cubes along the diameter of the scene's sphere.
        device: Where to compute.
        max_memory: Maximum bytes per chunk of points or rays, in addition to what is loaded; None: unlimited.
        data: Where the run's data is now; None: where it was at training.

    Returns:
        Scene of the run, and its reconstruction.

    Raises:
        PmniError: The run is neither one of this package's methods nor a surface model trained on data of
            `pmni convert`, or the memory is insufficient.
    """
    from pmni_nerfstudio.data.dataset import PmniDataset
    from pmni_nerfstudio.export.cameras import data_world_poses
    from pmni_nerfstudio.export.field_volume import sample_field
    from pmni_nerfstudio.export.maps import limit_ray_memory, render_views
    from pmni_nerfstudio.geometry.marching_cubes import extract_mesh
    from pmni_nerfstudio.geometry.mesh import transformed_mesh
    from pmni_nerfstudio.model.pmni_model import PmniModel
    from pmni_nerfstudio.training.trained_run import load_run

    run = load_run(config, device, data)
    model, dataset = run.pipeline.model, run.pipeline.datamanager.train_dataset
    if not (isinstance(model, PmniModel) and isinstance(dataset, PmniDataset)):
        return _baseline_reconstruction(run, resolution, max_memory)
    scene, poses = dataset.scene, model.camera_optimizer
    limit_ray_memory(model, max_memory)
    unit_mesh = extract_mesh(model.field.sdf, resolution, device=model.device, max_memory=max_memory)
    mesh = transformed_mesh(unit_mesh, scene.world_from_unit)
    c2w = data_world_poses(scene, dataset.views, poses.c2w_opencv_double())
    trained = np.zeros(scene.num_views, dtype=bool)
    trained[list(dataset.views)] = True

    def render(at: np.ndarray) -> Iterator[RenderedView]:
        from pmni_nerfstudio.data.dataparser import nerfstudio_cameras

        unit = transform_poses(np.linalg.inv(scene.world_from_unit), at)
        cameras = nerfstudio_cameras(scene.K, unit, scene.width, scene.height, cam_idx=False)
        return render_views(model, cameras, scene.world_from_unit)

    statistics = model.registration_statistics
    return scene, Reconstruction(
        run.config_path,
        mesh,
        c2w,
        trained,
        calibrated=not poses.enabled,
        method=run.config.method_name,
        render=render,
        registration=None if statistics is None else verdict_record(statistics),
        sample_field=lambda: sample_field(
            model.field.sdf, unit_mesh, scene.world_from_unit, device=model.device, max_memory=max_memory
        ),
    )


def _baseline_reconstruction(run: Run, resolution: int, max_memory: int | None) -> tuple[Scene, Reconstruction]:
    from pmni_nerfstudio.baselines.surface import baseline_mesh, baseline_scene

    scene, c2w = baseline_scene(run.pipeline)
    mesh = baseline_mesh(run.pipeline, resolution, max_memory=max_memory)
    trained = np.ones(scene.num_views, dtype=bool)
    # Estimated poses passed to `pmni convert` define a world of their own, which has to be aligned.
    calibrated = poses_are_given(c2w, scene)
    method = run.config.method_name
    return scene, Reconstruction(run.config_path, mesh, c2w, trained, calibrated, method, _mesh_renderer(mesh, scene))


def _mesh_renderer(mesh: trimesh.Trimesh, scene: Scene | None) -> Renderer:
    def render(at: np.ndarray) -> Iterator[RenderedView]:
        from pmni_nerfstudio.export.maps import RenderedView

        if scene is None:
            raise PmniError("normals of a mesh can't be rendered without a scene; give --data")
        rays = RayCaster(mesh)
        for K, pose in zip(scene.K, at):
            normals, distance = camera_normals(mesh, rays, K, pose, scene.width, scene.height)
            yield RenderedView(normals, np.where(np.isfinite(distance), distance, 0).astype(np.float32))

    return render

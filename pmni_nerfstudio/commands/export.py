# SPDX-License-Identifier: Apache-2.0
"""`pmni export`: mesh, cameras and maps of a trained run, in the data's own world and units."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from pmni_nerfstudio.data.files import make_output_folder
from pmni_nerfstudio.data.result_files import write_mesh
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.mesh import transformed_mesh

if TYPE_CHECKING:
    import trimesh

    from pmni_nerfstudio.model.pmni_model import PmniModel


@dataclass(kw_only=True)
class ExportCommand:
    """Write the mesh and the refined cameras of a trained run in the data's own world and units."""

    load_config: Path
    """The run's config.yml, as ns-train wrote it."""
    output_dir: Path
    """Folder to write to; made if need be."""
    resolution: int = 512
    """Cells of marching cubes along the diameter of the scene's sphere; time and memory grow with its square."""
    format: Literal["ply", "obj", "stl", "glb"] = "ply"
    """File format of the mesh."""
    keep_components: float = 0.02
    """Drop pieces of the mesh with less than this share of the largest one's area; 0 keeps all."""
    maps: bool = False
    """Also render normals and depth (distance along the ray) of every training view, as EXR and PNG."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA if there."""
    max_memory: str | None = None
    """Most memory that one chunk of points or rays may take beside what is loaded, as 2G, 500M or bytes; none: no bound."""

    def main(self) -> None:
        """Load, extract, write, and print what was written.

        Raises:
            PmniError: a mistake in the options, the run or its data, too little memory, or a folder that can't be written to.
        """
        if self.resolution < 8:
            raise PmniError(f"resolution: {self.resolution} is too coarse for a mesh: give 8 or more")
        if not 0 <= self.keep_components <= 1:
            raise PmniError(f"keep-components: {self.keep_components} is no share: give a number from 0 to 1")
        start = time.perf_counter()
        from pmni_nerfstudio.chunks import parse_memory
        from pmni_nerfstudio.training.trained_run import load_run

        max_memory = parse_memory(self.max_memory)
        run = load_run(self.load_config, self.device)
        # Before the mesh, so that nobody waits for one which then has nowhere to go.
        make_output_folder(self.output_dir)
        from pmni_nerfstudio.data.dataset import PmniDataset
        from pmni_nerfstudio.export.cameras import all_poses, write_refined_cameras
        from pmni_nerfstudio.export.maps import bound_rays, map_folders, rendered, write_view
        from pmni_nerfstudio.fields.sdf_field import PmniField
        from pmni_nerfstudio.geometry.marching_cubes import extract_mesh
        from pmni_nerfstudio.model.pose_optimizer import PmniPoseOptimizer

        model, dataset = run.pipeline.model, run.pipeline.datamanager.train_dataset
        field, poses = getattr(model, "field", None), getattr(model, "camera_optimizer", None)
        if not (
            isinstance(dataset, PmniDataset) and isinstance(field, PmniField) and isinstance(poses, PmniPoseOptimizer)
        ):
            raise PmniError(f"{self.load_config}: is a run of {run.config.method_name}: use ns-export for it")
        model = cast("PmniModel", model)
        bound_rays(model, max_memory)
        mesh = extract_mesh(
            field.sdf,
            self.resolution,
            device=model.device,
            max_memory=max_memory,
            keep_components=self.keep_components,
        )
        mesh = transformed_mesh(mesh, dataset.scene.world_from_unit)
        files = [self.output_dir / f"mesh.{self.format}"]
        write_mesh(files[0], mesh)
        refined = poses.c2w_opencv_double()
        files += write_refined_cameras(self.output_dir, dataset.scene, all_poses(dataset.scene, dataset.views, refined))
        if self.maps:
            files += map_folders(self.output_dir)
            names = (dataset.scene.names[i] for i in dataset.views)
            views = rendered(model, dataset.cameras, dataset.scene.world_from_unit)
            for name, view in zip(names, views):
                write_view(self.output_dir, name, view)
        print_summary(mesh, time.perf_counter() - start, files)


def print_summary(mesh: trimesh.Trimesh, seconds: float, files: list[Path]) -> None:
    """A short table of what was written."""
    size = " x ".join(f"{extent:.4g}" for extent in mesh.extents)
    rows = [
        ("faces", f"{len(mesh.faces):,}"),
        ("size", f"{size} (the data's units)"),
        ("watertight", "yes" if mesh.is_watertight else "no"),
        ("seconds", f"{seconds:.1f}"),
        *(("wrote" if i == 0 else "", str(path)) for i, path in enumerate(files)),
    ]
    for label, value in rows:
        print(f"{label:<12}{value}")

# SPDX-License-Identifier: Apache-2.0
"""`pmni export`: mesh, cameras and maps of a trained run, in the data world and its units."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pmni_nerfstudio.errors import PmniError

if TYPE_CHECKING:
    import trimesh


@dataclass(kw_only=True)
class ExportCommand:
    """Write the mesh and the refined cameras of a trained run, in the world and units of the scene's camera file."""

    load_config: Path
    """config.yml of the run, as written by ns-train."""
    data: Path | None = None
    """Scene folder of the run, if it has been moved since the training."""
    output_dir: Path
    """Output folder, created if necessary."""
    resolution: int = 512
    """Number of marching cubes cells along the diameter of the scene's sphere; time and memory grow with its square."""
    format: Literal["ply", "obj", "stl", "glb"] = "ply"
    """File format of the mesh."""
    keep_components: float = 0.02
    """Minimum area of a connected component of the mesh, as a fraction of the largest component's area; smaller ones are
    dropped as floaters, 0 keeps all."""
    maps: bool = False
    """Also render normal and depth maps of all training views, as EXR and PNG; depth is measured along the ray."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto selects CUDA if it is available."""
    max_memory: str | None = None
    """Memory limit of one chunk of points or rays, in addition to what is loaded: bytes, or 2G, 500M, 64K; none sets no
    limit."""

    def main(self) -> None:
        """Load the run, extract the mesh, write all files and print a summary.

        Raises:
            PmniError: an option, the run or its data is invalid, memory is insufficient, or the output folder is not
                writable.
        """
        if self.resolution < 8:
            raise PmniError(f"resolution: {self.resolution} is too coarse for a mesh; give 8 or more")
        if not 0 <= self.keep_components <= 1:
            raise PmniError(f"keep-components: {self.keep_components} is out of range; give a number from 0 to 1")
        start = time.perf_counter()
        # PyTorch and nerfstudio take seconds to import, and are not needed for --help or invalid options.
        from pmni_nerfstudio.chunks import parse_memory
        from pmni_nerfstudio.data.files import make_output_folder
        from pmni_nerfstudio.training.trained_run import load_run

        max_memory = parse_memory(self.max_memory)
        run = load_run(self.load_config, self.device, self.data)
        make_output_folder(self.output_dir)  # an unwritable folder fails before the mesh is computed

        from pmni_nerfstudio.data.dataset import PmniDataset
        from pmni_nerfstudio.data.result_files import write_mesh
        from pmni_nerfstudio.export.cameras import data_world_poses, write_result_cameras
        from pmni_nerfstudio.export.maps import limit_ray_memory, make_map_folders, render_views, write_maps
        from pmni_nerfstudio.geometry.marching_cubes import extract_mesh
        from pmni_nerfstudio.geometry.mesh import transformed_mesh
        from pmni_nerfstudio.model.pmni_model import PmniModel

        model, dataset = run.pipeline.model, run.pipeline.datamanager.train_dataset
        if not (isinstance(model, PmniModel) and isinstance(dataset, PmniDataset)):
            raise PmniError(f"{self.load_config}: is a run of {run.config.method_name}; use ns-export")
        scene = dataset.scene
        limit_ray_memory(model, max_memory)

        mesh = extract_mesh(
            model.field.sdf,
            self.resolution,
            device=model.device,
            max_memory=max_memory,
            keep_components=self.keep_components,
        )
        mesh = transformed_mesh(mesh, scene.world_from_unit)
        mesh_file = self.output_dir / f"mesh.{self.format}"
        write_mesh(mesh_file, mesh)

        c2w = data_world_poses(scene, dataset.views, model.camera_optimizer.c2w_opencv_double())
        files = [mesh_file, *write_result_cameras(self.output_dir, scene, c2w)]

        if self.maps:
            files += make_map_folders(self.output_dir)
            for maps, view in zip(render_views(model, dataset.cameras, scene.world_from_unit), dataset.views):
                write_maps(self.output_dir, scene.names[view], maps)
        units = "object units, without scale" if scene.c2w is None else "the data's units"
        _print_summary(mesh, units, time.perf_counter() - start, files)


def _print_summary(mesh: trimesh.Trimesh, units: str, seconds: float, files: list[Path]) -> None:
    size = " x ".join(f"{extent:.4g}" for extent in mesh.extents)
    rows = [
        ("faces", f"{len(mesh.faces):,}"),
        ("size", f"{size} ({units})"),
        ("watertight", "yes" if mesh.is_watertight else "no"),
        ("seconds", f"{seconds:.1f}"),
        *(("wrote" if i == 0 else "", str(path)) for i, path in enumerate(files)),
    ]
    for label, value in rows:
        print(f"{label:<12}{value}")

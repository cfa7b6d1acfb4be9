# SPDX-License-Identifier: Apache-2.0
"""`pmni export`: mesh or field, cameras and maps of a trained run, in the data world and its units."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pmni_nerfstudio.commands.checks import check_resolution
from pmni_nerfstudio.errors import PmniError

if TYPE_CHECKING:
    from pmni_nerfstudio.data.scene import Scene
    from pmni_nerfstudio.model.pmni_model import PmniModel
    from pmni_nerfstudio.training.trained_run import Run

FIELD_FILE = "field.onnx"
"""Name of the exported field."""


@dataclass(kw_only=True)
class ExportCommand:
    """Write the mesh and the refined cameras of a trained run, in the world and units of the scene's camera file.

    With --format onnx, the signed distance field itself is written instead of a mesh, as a file that runs without this
    package: signed distances and gradients of points in the same world and units.
    """

    load_config: Path
    """config.yml of the run, as written by ns-train."""
    data: Path | None = None
    """Scene folder of the run, if it has been moved since the training."""
    output_dir: Path
    """Output folder, created if necessary."""
    resolution: int | None = None
    """Number of marching cubes cells along the diameter of the scene's sphere; time and memory grow with its square. By
    default 512, and up to 1024 where the field has finer detail, of close-ups."""
    format: Literal["ply", "obj", "stl", "glb", "onnx"] = "ply"
    """File format of the mesh; onnx writes the field as an ONNX model instead."""
    precision: Literal["float32", "float16"] = "float32"
    """Type in which an ONNX model stores the field's parameters; float16 halves the file."""
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
        if self.resolution is not None:
            check_resolution(self.resolution)
        if not 0 <= self.keep_components <= 1:
            raise PmniError(f"keep-components: {self.keep_components} is out of range; give a number from 0 to 1")
        start = time.perf_counter()
        # PyTorch and nerfstudio take seconds to import, and are not needed for --help or invalid options.
        from pmni_nerfstudio.chunks import parse_memory
        from pmni_nerfstudio.data.files import make_output_folder
        from pmni_nerfstudio.export.onnx_field import require_onnx
        from pmni_nerfstudio.training.trained_run import load_run

        if self.format == "onnx":
            require_onnx()
        max_memory = parse_memory(self.max_memory)
        run = load_run(self.load_config, self.device, self.data)
        make_output_folder(self.output_dir)  # an unwritable folder fails before the mesh is computed

        from pmni_nerfstudio.data.dataset import PmniDataset
        from pmni_nerfstudio.export.cameras import data_world_poses, write_result_cameras
        from pmni_nerfstudio.export.maps import limit_ray_memory, make_map_folders, render_views, write_maps
        from pmni_nerfstudio.model.pmni_model import PmniModel

        model, dataset = run.pipeline.model, run.pipeline.datamanager.train_dataset
        if not (isinstance(model, PmniModel) and isinstance(dataset, PmniDataset)):
            raise PmniError(f"{self.load_config}: is a run of {run.config.method_name}; use ns-export")
        scene = dataset.scene
        limit_ray_memory(model, max_memory)
        units = "object units, without scale" if scene.c2w is None else "the data's units"
        if self.format == "onnx":
            rows, files = self._write_field(run, units)
        else:
            rows, files = self._write_mesh(model, scene, units, max_memory)
        c2w = data_world_poses(scene, dataset.views, model.camera_optimizer.c2w_opencv_double())
        files += write_result_cameras(self.output_dir, scene, c2w)

        if self.maps:
            files += make_map_folders(self.output_dir)
            for maps, view in zip(render_views(model, dataset.cameras, scene.world_from_unit), dataset.views):
                write_maps(self.output_dir, scene, view, maps)
        rows.append(("seconds", f"{time.perf_counter() - start:.1f}"))
        rows += [("wrote" if i == 0 else "", str(path)) for i, path in enumerate(files)]
        for label, value in rows:
            print(f"{label:<12}{value}")

    def _write_mesh(
        self, model: PmniModel, scene: Scene, units: str, max_memory: int | None
    ) -> tuple[list[tuple[str, str]], list[Path]]:
        """Extract and write the mesh; return facts about it and its file."""
        from pmni_nerfstudio.data.result_files import write_mesh
        from pmni_nerfstudio.geometry.marching_cubes import extract_mesh
        from pmni_nerfstudio.geometry.mesh import transformed_mesh

        mesh = extract_mesh(
            model.field.sdf,
            model.field.mesh_resolution() if self.resolution is None else self.resolution,
            device=model.device,
            max_memory=max_memory,
            keep_components=self.keep_components,
        )
        mesh = transformed_mesh(mesh, scene.world_from_unit)
        path = self.output_dir / f"mesh.{self.format}"
        write_mesh(path, mesh)
        size = " x ".join(f"{extent:.4g}" for extent in mesh.extents)
        rows = [
            ("faces", f"{len(mesh.faces):,}"),
            ("size", f"{size} ({units})"),
            ("watertight", "yes" if mesh.is_watertight else "no"),
        ]
        return rows, [path]

    def _write_field(self, run: Run, units: str) -> tuple[list[tuple[str, str]], list[Path]]:
        """Write the field as an ONNX model; return facts about it and its file."""
        from pmni_nerfstudio.data.atomic import atomic_path
        from pmni_nerfstudio.export.onnx_field import onnx_field
        from pmni_nerfstudio.export.world_sdf import world_sdf

        sdf = world_sdf(run)
        content = onnx_field(sdf, units, self.precision).SerializeToString()
        path = self.output_dir / FIELD_FILE
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        center = ", ".join(f"{coordinate:.5g}" for coordinate in sdf.center)
        rows = [
            ("field", f"{sdf.field.config.encoding}, {self.precision}, {len(content) / 1e6:.1f} MB"),
            ("sphere", f"center {center}, radius {sdf.radius:.5g} ({units})"),
        ]
        return rows, [path]

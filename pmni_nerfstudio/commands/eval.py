# SPDX-License-Identifier: Apache-2.0
"""`pmni eval`: metrics of a trained run, or of a mesh and poses."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pmni_nerfstudio.commands.checks import check_resolution
from pmni_nerfstudio.errors import PmniError

if TYPE_CHECKING:
    from pmni_nerfstudio.data.scene import Scene
    from pmni_nerfstudio.evaluation.evaluate import OnView
    from pmni_nerfstudio.evaluation.reconstruction import Reconstruction


@dataclass(kw_only=True)
class EvalCommand:
    """Evaluate a trained run, or a mesh and poses: Chamfer distance, F-score, pose errors, normal errors, mesh statistics.

    Give --load-config CONFIG, or --mesh MESH (and --poses POSES) with --data DIR or --truth DIR. The ground truth is
    the folder that `pmni synth` wrote within the scene, or else the scene's mesh_Gt.ply and given cameras. Without
    ground truth only the normals and the mesh are evaluated.
    """

    load_config: Path | None = None
    """config.yml of a run, as written by ns-train."""
    mesh: Path | None = None
    """Mesh (.ply, .obj, .stl or .glb) in the world and units of the data, to evaluate instead of a run."""
    poses: Path | None = None
    """Camera-to-world poses in the world of --mesh: poses.npy or cameras_refined.npz of `pmni export`."""
    data: Path | None = None
    """Scene folder from which --mesh was reconstructed, or that of the run if it has been moved since the training."""
    truth: Path | None = None
    """Ground-truth folder, as written by `pmni synth`, if it is not part of the scene."""
    output_dir: Path | None = None
    """Folder for metrics.json, views.csv, rendered maps, mesh and cameras; by default nothing is written."""
    align: bool = True
    """Align estimated poses and their surface to the ground truth by a similarity first. Runs with given poses are never
    aligned."""
    threshold: float = 0.5
    """Distance threshold of the F-score, in the data's units."""
    units: str | None = None
    """Name of the data's units, for display. Default: mm if the scene has camera poses, which give it a scale, or if there is
    ground truth, to whose scale the result is brought; "object units" otherwise."""
    rays: Literal["masked", "all"] = "masked"
    """Pixels whose rays sample the surfaces: masked for those of the masks, all for all pixels, which penalizes floaters."""
    resolution: int = 512
    """Marching cubes cells along the diameter of the scene's sphere, for the mesh of a run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Compute device; auto uses CUDA if available."""
    max_memory: str | None = None
    """Maximum memory per chunk of points or rays, in addition to what is loaded, such as 2G, 500M or a number of bytes; by
    default unlimited."""

    def main(self) -> None:
        """Evaluate, print the metrics and write the files.

        Raises:
            PmniError: Options are inconsistent, a file is missing or invalid, or memory is insufficient.
        """
        self._check()
        from pmni_nerfstudio.data.files import output_folder

        # An unusable folder fails before anything is computed.
        with nullcontext() if self.output_dir is None else output_folder(self.output_dir):
            self._evaluate()

    def _evaluate(self) -> None:
        # open3d and torch take seconds to import, which would slow down `--help`.
        from rich.console import Console

        from pmni_nerfstudio.chunks import parse_memory
        from pmni_nerfstudio.data.scene import read_scene
        from pmni_nerfstudio.evaluation.evaluate import evaluate
        from pmni_nerfstudio.evaluation.ground_truth import find_ground_truth, read_ground_truth
        from pmni_nerfstudio.evaluation.metrics_file import metrics_record, metrics_table, write_metrics
        from pmni_nerfstudio.evaluation.reconstruction import reconstruction_from_files, reconstruction_from_run
        from pmni_nerfstudio.export.cameras import with_result_intrinsics
        from pmni_nerfstudio.registration.statistics import verdict_lines

        max_memory = parse_memory(self.max_memory)
        truth = None if self.truth is None else read_ground_truth(self.truth)
        if self.load_config is not None:
            scene, result = reconstruction_from_run(
                self.load_config, self.resolution, self.device, max_memory, self.data
            )
        else:
            assert self.mesh is not None
            scene = None if self.data is None else with_result_intrinsics(read_scene(self.data), self.mesh.parent)
            views = scene.num_views if scene is not None else len(truth.c2w) if truth is not None else 0
            result = reconstruction_from_files(self.mesh, self.poses, scene, views)
        if truth is None and scene is not None:
            truth = find_ground_truth(scene)
        evaluation = evaluate(result, scene, truth, self.align, self.threshold, self.rays, self._map_writer(scene))
        record = metrics_record(
            evaluation,
            names=list(scene.names) if scene is not None else [f"{i:02d}" for i in range(len(result.trained))],
            scene=None if scene is None else scene.root.resolve(),
            config=None if self.load_config is None else self.load_config.resolve(),
            method=result.method,
            units=self.units,
            has_scale=scene is None or scene.c2w is not None,
            registration=result.registration,
            normals_folder=None if scene is None else scene.normal_files[0].parent.name,
        )
        console = Console()
        scale = 1.0 if evaluation.scores is None else evaluation.scores.scale
        console.print(metrics_table(record, str(result.source), scale))
        if result.registration is not None:
            for line in verdict_lines(result.registration):
                console.print(line, highlight=False, soft_wrap=True, markup=False)
        if truth is None:
            console.print("No ground truth found: only the normals and the mesh were evaluated.")
        if self.output_dir is not None:
            metrics = write_metrics(self.output_dir, record)
            for file in [*metrics, *self._write_result(self.output_dir, result, scene)]:
                console.print(f"wrote {file}", highlight=False, soft_wrap=True)

    def _check(self) -> None:
        if (self.load_config is None) == (self.mesh is None):
            raise PmniError("pmni eval: give either a run (--load-config CONFIG) or a mesh (--mesh MESH --data DIR)")
        if self.load_config is not None and self.poses is not None:
            raise PmniError("pmni eval: a run has its own poses; drop --poses")
        if self.mesh is not None and self.data is None and self.truth is None:
            raise PmniError(f"{self.mesh}: there is nothing to compare this mesh with; give --data DIR or --truth DIR")
        if not self.threshold > 0:
            raise PmniError(f"threshold: {self.threshold} is not positive; give a number above 0")
        check_resolution(self.resolution)

    def _map_writer(self, scene: Scene | None) -> OnView | None:
        folder = self.output_dir
        if folder is None or scene is None:
            return None
        from pmni_nerfstudio.export.maps import make_map_folders, write_maps

        make_map_folders(folder)
        return lambda name, view: write_maps(folder, scene, scene.names.index(name), view)

    def _write_result(self, folder: Path, result: Reconstruction, scene: Scene | None) -> list[Path]:
        from pmni_nerfstudio.data.result_files import write_mesh
        from pmni_nerfstudio.evaluation.stored_result import MESH_FILE
        from pmni_nerfstudio.export.cameras import write_result_cameras
        from pmni_nerfstudio.export.field_volume import FIELD_FILE, write_field_volume
        from pmni_nerfstudio.export.maps import make_map_folders

        files = [folder / MESH_FILE]
        write_mesh(files[0], result.mesh)
        (folder / FIELD_FILE).unlink(missing_ok=True)  # that of an earlier evaluation would belong to another mesh
        if result.sample_field is not None:
            files.append(folder / FIELD_FILE)
            write_field_volume(files[-1], result.sample_field())
        if result.c2w is None or scene is None:
            return files
        return [*files, *write_result_cameras(folder, scene, result.c2w), *make_map_folders(folder)]

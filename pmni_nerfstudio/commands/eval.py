# SPDX-License-Identifier: Apache-2.0
"""`pmni eval`: the field's measures of a trained run, or of any mesh and poses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pmni_nerfstudio.errors import PmniError

if TYPE_CHECKING:
    from pmni_nerfstudio.data.scene import Scene
    from pmni_nerfstudio.evaluation.result import Result


@dataclass(kw_only=True)
class EvalCommand:
    """Measure a run, or any mesh and poses: Chamfer and F-score, poses, rendered normals, the mesh itself.

    Give --load-config CONFIG, or --mesh M (and --poses P) with --data DIR or --truth DIR. The truth is what `pmni synth`
    left in the scene's folder, or else its mesh_Gt.ply and its given cameras; without any, only normals and mesh are
    measured.
    """

    load_config: Path | None = None
    """A run's config.yml, as ns-train wrote it."""
    mesh: Path | None = None
    """A mesh in the world and units of the data (.ply, .obj, .stl, .glb), in the place of a run."""
    poses: Path | None = None
    """Camera-to-world poses in the world of the mesh: poses.npy or cameras_refined.npz of `pmni export`."""
    data: Path | None = None
    """The scene that the mesh was made from."""
    truth: Path | None = None
    """Truth folder, as `pmni synth` writes it, where it isn't in the scene's."""
    output_dir: Path | None = None
    """Folder for metrics.json, views.csv and rendered maps, of a run also its mesh and cameras."""
    align: bool = True
    """Take found poses and their surface to the true world by a similarity first. Runs with given poses never are."""
    threshold: float = 0.5
    """Of the F-score, in the data's units."""
    units: str = "mm"
    """Name of the data's units."""
    rays: Literal["masked", "all"] = "masked"
    """Which pixels' rays show what is compared: those of the masks, or all, so that what floats beside counts too."""
    resolution: int = 512
    """Cells of marching cubes along the diameter of the scene's sphere, for a run's mesh."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA if there."""
    max_memory: str | None = None
    """Most memory that one chunk of points or rays may take beside what is loaded, as 2G, 500M or bytes; none: no bound."""

    def main(self) -> None:
        """Measure, print, write.

        Raises:
            PmniError: a mistake in the options, a file that is missing or broken, or too little memory.
        """
        self._check()
        # before anything is computed that would have nowhere to go
        if self.output_dir is not None:
            from pmni_nerfstudio.data.files import make_output_folder

            make_output_folder(self.output_dir)
        # open3d and torch take seconds to load, which `--help` need not wait for
        from rich.console import Console

        from pmni_nerfstudio.chunks import parse_memory
        from pmni_nerfstudio.data.scene import read_scene
        from pmni_nerfstudio.evaluation.evaluate import evaluate
        from pmni_nerfstudio.evaluation.ground_truth import find_truth, read_truth
        from pmni_nerfstudio.evaluation.record import record_of, table_of, write_record
        from pmni_nerfstudio.evaluation.result import load_result, result_of_files

        max_memory = parse_memory(self.max_memory)
        truth = None if self.truth is None else read_truth(self.truth)
        if self.load_config is not None:
            scene, result = load_result(self.load_config, self.resolution, self.device, max_memory)
        else:
            assert self.mesh is not None
            scene = None if self.data is None else read_scene(self.data)
            views = scene.num_views if scene is not None else len(truth.c2w) if truth is not None else 0
            result = result_of_files(self.mesh, self.poses, scene, views)
        if truth is None and scene is not None:
            truth = find_truth(scene)
        found = evaluate(result, scene, truth, self.align, self.threshold, self.rays, self._map_writer(scene))
        names = list(scene.names) if scene is not None else [f"{i:02d}" for i in range(len(result.trained))]
        record = record_of(
            found,
            names=names,
            scene=None if scene is None else scene.root.resolve(),
            config=None if self.load_config is None else self.load_config.resolve(),
            method=result.method,
            units=self.units,
        )
        console = Console()
        console.print(table_of(record, str(result.source), 1.0 if found.scores is None else found.scores.scale))
        if truth is None:
            console.print("No truth is known here: only normals and mesh were measured.")
        if self.output_dir is not None:
            files = write_record(self.output_dir, record)
            self._write_result(self.output_dir, result, scene)
            for file in files:
                console.print(f"wrote {file}", highlight=False, soft_wrap=True)

    def _check(self) -> None:
        if (self.load_config is None) == (self.mesh is None):
            raise PmniError("pmni eval: give a run (--load-config CONFIG) or a mesh (--mesh M --data DIR), one of them")
        if self.load_config is not None and (self.data is not None or self.poses is not None):
            raise PmniError("pmni eval: a run knows its data and poses: drop --data and --poses")
        if self.mesh is not None and self.data is None and self.truth is None:
            raise PmniError(f"{self.mesh}: is to be compared with what? Give --data DIR, or --truth DIR")
        if not self.threshold > 0:
            raise PmniError(f"threshold: {self.threshold} is no threshold: give a number above 0")
        if self.resolution < 8:
            raise PmniError(f"resolution: {self.resolution} is too coarse for a mesh: give 8 or more")

    def _map_writer(self, scene: Scene | None):
        folder = self.output_dir
        if folder is None or scene is None:
            return None
        from pmni_nerfstudio.export.maps import map_folders, write_view

        map_folders(folder)
        return lambda name, view: write_view(folder, name, view)

    def _write_result(self, folder: Path, result: Result, scene: Scene | None) -> None:
        from pmni_nerfstudio.data.result_files import write_mesh
        from pmni_nerfstudio.export.cameras import write_refined_cameras
        from pmni_nerfstudio.geometry.transforms import transform_poses

        write_mesh(folder / "mesh.ply", result.mesh)
        if result.c2w is not None and scene is not None:
            import numpy as np

            unit = transform_poses(np.linalg.inv(scene.world_from_unit), result.c2w)
            write_refined_cameras(folder, scene, unit)

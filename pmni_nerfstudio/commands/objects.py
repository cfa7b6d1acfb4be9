# SPDX-License-Identifier: Apache-2.0
"""`pmni objects DATA`: a surface for each of several objects in one capture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pmni_nerfstudio.commands.checks import check_resolution, check_seed
from pmni_nerfstudio.errors import PmniError, print_warnings

if TYPE_CHECKING:
    import numpy as np
    import trimesh
    from rich.console import Console

    from pmni_nerfstudio.data.scene import Scene
    from pmni_nerfstudio.evaluation.ground_truth import GroundTruth
    from pmni_nerfstudio.model.initialization import Initialization
    from pmni_nerfstudio.objects.find import FoundObjects
    from pmni_nerfstudio.studies.job import Job, JobResult


@dataclass(kw_only=True)
class ObjectsCommand:
    """Reconstruct each of several objects that were captured together, from label images in DATA/instance.

    The views are registered once, from all objects together. Each object then is trained in a process of its own, at these
    poses; where others stand in front of it, its silhouette is unknown, and is not carved. Meshes of objects that touch are
    separated half-way between their surfaces. Objects that were trained earlier in the output folder are not trained again.
    """

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Scene folder with instance/NN.png: a number for each object, 0 where there is none."""
    output_dir: Path
    """Folder for the meshes by object, scene.glb, cameras, objects.json and the training runs."""
    normals_folder: str | None = None
    """Name of the folder with the normal maps, if the scene has several."""
    labels: Literal["auto", "consistent", "match"] = "auto"
    """Whether a number means the same object in all views (consistent), or differs between views, so that objects have to
    be matched at their common surface (match). auto measures which."""
    poses: Literal["register", "given"] = "register"
    """register: recover the poses, from rough ones or none; given: use those of the scene."""
    train: str = "pmni-calibrated"
    """Method of ns-train with fixed poses, and its flags, quoted: "pmni-calibrated --max-num-iterations 500"."""
    truth: Path | None = None
    """Ground-truth folder with objects/NAME.ply, the true mesh of each object, to evaluate every object."""
    threshold: float = 0.5
    """Distance threshold of the F-score, in the data's units."""
    resolution: int = 512
    """Marching cubes cells along the diameter of an object's sphere."""
    seed: int = 0
    """Seed of the registration."""
    jobs: int = 1
    """Number of objects that are trained at the same time."""

    def main(self) -> None:
        """Register, train the objects, and write their meshes.

        Raises:
            PmniError: an option, the scene or its labels are invalid, the registration failed, or an object could not be
                trained.
        """
        self._check()
        from rich.console import Console

        from pmni_nerfstudio.data.files import output_folder
        from pmni_nerfstudio.data.folder_lock import lock_folder
        from pmni_nerfstudio.data.instances import read_instances
        from pmni_nerfstudio.data.scene import read_scene
        from pmni_nerfstudio.evaluation.ground_truth import read_ground_truth
        from pmni_nerfstudio.objects.scores import read_true_objects

        # Mistakes in the data end the command before anything is written.
        scene = read_scene(self.data, self.normals_folder)
        labels, warnings = read_instances(scene)
        truth = None if self.truth is None else (read_ground_truth(self.truth), read_true_objects(self.truth))
        if truth is not None and len(truth[0].c2w) != scene.num_views:
            raise PmniError(f"{self.truth}: has {len(truth[0].c2w)} views, but {self.data} has {scene.num_views}")
        with output_folder(self.output_dir), lock_folder(self.output_dir):
            print_warnings([*scene.warnings, *warnings])
            self._run(scene, labels, truth, Console())

    def _check(self) -> None:
        if self.jobs < 1:
            raise PmniError(f"jobs: {self.jobs} is not positive; give 1 or more")
        check_resolution(self.resolution)
        check_seed(self.seed)
        if not self.threshold > 0:
            raise PmniError(f"threshold: {self.threshold} is not positive; give a number above 0")
        self._method()

    def _method(self) -> tuple[str, tuple[str, ...]]:
        """Method of ns-train, and its flags."""
        import shlex

        try:
            words = shlex.split(self.train)
        except ValueError as error:
            raise PmniError(f"train: {self.train}: {error}; quote flags as in a shell") from error
        if not words:
            raise PmniError("train: is empty; give a method, such as pmni-calibrated")
        return words[0], tuple(words[1:])

    def _run(
        self,
        scene: Scene,
        labels: np.ndarray,
        truth: tuple[GroundTruth, dict[str, trimesh.Trimesh]] | None,
        console: Console,
    ) -> None:
        from dataclasses import replace

        import numpy as np

        from pmni_nerfstudio.objects.find import find_objects
        from pmni_nerfstudio.registration.surface.sdf_grid import Surface

        start = self._poses(scene, labels)
        if start.registration is not None:
            scene = replace(scene, K=start.registration.intrinsics.corrected(scene.K))
        trusted = np.ones(scene.num_views, dtype=bool) if start.inlier_views is None else start.inlier_views
        found = find_objects(scene, labels, start.c2w, Surface(start.sdf.numpy()), trusted, self.labels)
        print_warnings(found.warnings)
        kind = "matched between views" if found.matched else "the same in all views"
        console.print(f"Objects: {len(found.objects)}; labels {kind} ({found.consistency:.0%} agree as stored)")
        results = self._train(scene, start.c2w, found, console)
        meshes, contacts = self._meshes(results)
        record: dict[str, Any] = {
            "scene": str(self.data.resolve()),
            "labels": {"consistency": found.consistency, "matched": found.matched},
            "objects": [self._object_record(views, scene, results[views.number], meshes) for views in found.objects],
            "contacts": contacts,
        }
        if truth is not None:
            self._evaluate(scene, start, trusted, meshes, *truth, record)
        self._write(scene, start.c2w, found, meshes, record, console)

    def _poses(self, scene: Scene, labels: np.ndarray) -> Initialization:
        from pmni_nerfstudio.objects.common_poses import register_objects, surface_at_given_poses

        if self.poses == "given":
            return surface_at_given_poses(scene)
        return register_objects(scene, labels, self.seed, self.output_dir / "registration")

    def _train(self, scene: Scene, c2w: np.ndarray, found: FoundObjects, console: Console) -> dict[int, JobResult]:
        from pmni_nerfstudio.objects.object_scenes import object_scene_folder, write_object_scene
        from pmni_nerfstudio.studies.engines import available_gpus, run_locally
        from pmni_nerfstudio.studies.job import run_job
        from pmni_nerfstudio.studies.running import run_jobs

        out = self.output_dir.resolve()
        jobs: dict[int, Job] = {}
        for views in found.objects:
            folder = object_scene_folder(out / "scenes", scene, c2w, views)
            if not folder.is_dir():
                write_object_scene(folder, scene, c2w, views)
            jobs[views.number] = self._job(folder)
        runs = out / "runs"
        runs.mkdir(exist_ok=True)
        results = run_jobs(
            list(jobs.values()),
            runs,
            lambda remaining: run_locally(run_job, remaining, runs, self.jobs, available_gpus()),
            console,
        )
        failed = [(number, result.reason) for number, result in zip(jobs, results) if result.reason is not None]
        if failed:
            raise PmniError(f"{self.output_dir}: object {failed[0][0]} could not be trained: {failed[0][1]}")
        return dict(zip(jobs, results))

    def _job(self, folder: Path) -> Job:
        from pmni_nerfstudio.studies.job import Job

        method, flags = self._method()
        return Job(method, folder, flags=flags, eval_flags=("--resolution", str(self.resolution)))

    def _meshes(self, results: dict[int, JobResult]) -> tuple[dict[int, trimesh.Trimesh], list[dict[str, Any]]]:
        from pmni_nerfstudio.data.result_files import read_mesh
        from pmni_nerfstudio.evaluation.stored_result import MESH_FILE
        from pmni_nerfstudio.objects.results import separate_meshes
        from pmni_nerfstudio.studies.job import config_path

        folders = {number: Path(result.folder) for number, result in results.items()}
        configs = {number: config_path(results[number].method, folder / "run") for number, folder in folders.items()}
        meshes = {number: read_mesh(folder / "result" / MESH_FILE) for number, folder in folders.items()}
        return separate_meshes(meshes, configs, self.resolution)

    def _object_record(
        self, views: Any, scene: Scene, result: JobResult, meshes: dict[int, trimesh.Trimesh]
    ) -> dict[str, Any]:
        mesh = meshes[views.number]
        return {
            "object": views.number,
            "mesh": _mesh_name(views.number),
            "faces": len(mesh.faces),
            "watertight": bool(mesh.is_watertight),
            "views": [scene.names[view] for view in views.views],
            "hidden": {scene.names[view]: round(float(share), 4) for view, share in zip(views.views, views.hidden)},
            "run": str(Path(result.folder).relative_to(self.output_dir.resolve())),
            "seconds": result.seconds,
            "normals": None if result.metrics is None else result.metrics["normals"],
        }

    def _evaluate(
        self,
        scene: Scene,
        start: Initialization,
        trusted: np.ndarray,
        meshes: dict[int, trimesh.Trimesh],
        truth: GroundTruth,
        true_meshes: dict[str, trimesh.Trimesh],
        record: dict[str, Any],
    ) -> None:
        from dataclasses import asdict

        import numpy as np

        from pmni_nerfstudio.geometry.transforms import transform_poses
        from pmni_nerfstudio.objects.scores import score_objects

        views = np.flatnonzero(trusted)
        c2w = transform_poses(scene.world_from_unit, start.c2w)[views]
        align = self.poses == "register"
        scores = score_objects(meshes, c2w, views, truth, true_meshes, align, self.threshold)
        record["poses"], record["missing"] = asdict(scores.poses), scores.missing
        for entry in record["objects"]:
            score = scores.objects.get(entry["object"])
            entry["scores"] = None if score is None else asdict(score)

    def _write(
        self,
        scene: Scene,
        c2w: np.ndarray,
        found: FoundObjects,
        meshes: dict[int, trimesh.Trimesh],
        record: dict[str, Any],
        console: Console,
    ) -> None:
        from pmni_nerfstudio.data.atomic import write_json
        from pmni_nerfstudio.data.result_files import write_mesh
        from pmni_nerfstudio.export.cameras import write_result_cameras
        from pmni_nerfstudio.geometry.transforms import transform_poses
        from pmni_nerfstudio.objects.results import write_scene_file
        from pmni_nerfstudio.objects.table import objects_table

        files = []
        for number, mesh in meshes.items():
            files.append(self.output_dir / _mesh_name(number))
            write_mesh(files[-1], mesh)
        write_scene_file(self.output_dir / "scene.glb", meshes)
        files += [self.output_dir / "scene.glb", self.output_dir / "objects.json"]
        write_json(files[-1], record)
        files += write_result_cameras(self.output_dir, scene, transform_poses(scene.world_from_unit, c2w))
        console.print(objects_table(record, str(self.data)))
        for contact in record["contacts"]:
            a, b = contact["objects"]
            console.print(
                f"Objects {a} and {b} overlapped by {contact['before']['depth']:.3g} and were separated "
                f"({contact['after']['depth']:.3g} left)",
                highlight=False,
            )
        for file in files:
            console.print(f"wrote {file}", highlight=False, soft_wrap=True)


def _mesh_name(number: int) -> str:
    return f"object_{number}.ply"

# SPDX-License-Identifier: Apache-2.0
"""Process that reconstructs a block of frames: `python -m pmni_nerfstudio.sequences.block OUT NAME ...`."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pmni_nerfstudio.data.atomic import atomic_path, write_json
from pmni_nerfstudio.data.result_files import write_mesh
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.data.scene_writer import write_scene
from pmni_nerfstudio.errors import PmniError, exit_on_error, hide_dependency_warnings
from pmni_nerfstudio.export.cameras import data_world_poses
from pmni_nerfstudio.geometry.marching_cubes import extract_mesh
from pmni_nerfstudio.geometry.mesh import transformed_mesh
from pmni_nerfstudio.geometry.transforms import transform_poses
from pmni_nerfstudio.interrupts import exit_interrupted
from pmni_nerfstudio.model.pmni_model import PmniModel
from pmni_nerfstudio.registration.alternation import AlternationSchedule, alternate, detailed
from pmni_nerfstudio.registration.confidence import view_agreement
from pmni_nerfstudio.registration.intrinsics import unchanged_intrinsics
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.reflectance import unknown_bias
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.verdict import Verdict, judge
from pmni_nerfstudio.registration.views import Views, views_of_scene
from pmni_nerfstudio.sequences.continuation import continued
from pmni_nerfstudio.sequences.frames import Frame, check_same_cameras
from pmni_nerfstudio.sequences.fusion import fuse_over_time
from pmni_nerfstudio.sequences.plan import RECORD, Plan
from pmni_nerfstudio.sequences.training import train_frame
from pmni_nerfstudio.threads import one_thread

NORMALS = "normal_camera_space_fused"
"""Name of the folder with the fused normals in a frame's scene."""
_COARSE_ROUNDS = 2
"""Largest number of surface steps at each level but the finest. The poses are final, so that fewer steps are needed
than in a registration."""
_STEPS, _LATER_STEPS = 75, 40
"""Default training steps with static cameras: of the first frame of a block, and of the later ones.

The first frame takes half of the steps of a single scene, because its poses are final and its normals fused; a later
one takes about half of that, because it starts from the field of the previous frame. Chamfer distances of frame 6 of
the figure in docs/sequences.md, in % of the diameter: 0.035 after 75 steps and 0.041 after 30; 0.037 after 30 steps
from the field of the previous frame."""


class Block:
    """Reconstructs frames one after another.

    Args:
        plan: the sequence.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._scenes: dict[str, Scene] = {}
        self._reference: Scene | None = None
        self._before: tuple[Frame, PmniModel] | None = None

    def run(self, frame: Frame) -> dict[str, Any]:
        """Reconstruct a frame, and write its mesh and its record, which holds the message if its data are invalid."""
        started, plan = time.perf_counter(), self.plan
        folder = plan.folder(frame)
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in (folder / RECORD, plan.mesh(frame)):
            earlier.unlink(missing_ok=True)
        record: dict[str, Any] = {"frame": frame.name, "key": plan.key(frame), "error": None}
        try:
            record |= self._moving(frame) if plan.shared is None else self._static(frame)
        except PmniError as error:
            record |= {"error": str(error), "verdict": "failed", "reasons": [str(error)]}
        record["seconds"] = round(time.perf_counter() - started, 2)
        write_json(folder / RECORD, record)
        return record

    def _static(self, frame: Frame) -> dict[str, Any]:
        """Reconstruct a frame of static cameras: fuse normals, integrate a surface, train at the shared poses."""
        plan, shared = self.plan, self.plan.shared
        assert shared is not None
        scene = self._fused(frame)
        views, poses = views_of_scene(scene), Poses.from_c2w(shared.c2w)
        schedule = AlternationSchedule()
        levels = schedule.split_at_restart()[1].levels
        coarse = tuple(replace(level, rounds=min(level.rounds, _COARSE_ROUNDS)) for level in levels[:-1])
        fine = replace(schedule, levels=(*coarse, levels[-1]))
        with one_thread():
            _, surface = alternate(views, poses, fine, fixed_poses=True)
            if not surface.exists:
                raise PmniError(f"{frame.folder}: the masks have no visual hull at the poses of all frames; check them")
            surface = detailed(views, poses, surface, schedule)
            verdict = self._verdict(views, poses, surface)
        before = self._model_before(frame)
        folder = plan.folder(frame)
        _write_scene(folder / "scene", scene)
        start = surface.sdf
        if before is not None:
            start = continued(before.field.volume(surface.resolution).cpu().numpy(), surface)
        with atomic_path(folder / "start.npy") as path:
            np.save(path, start)
        steps = plan.settings.steps or (_STEPS if before is None else _LATER_STEPS)
        model = train_frame(
            "pmni-calibrated",
            folder / "scene",
            None,
            folder / "run",
            folder / "start.npy",
            steps,
            plan.settings.seed,
        )
        self._before = (frame, model) if verdict.name == "ok" else None
        return self._result(frame, scene, model, verdict.name, list(verdict.reasons))

    def _model_before(self, frame: Frame) -> PmniModel | None:
        """Model of the previous frame, if this process has just trained it and its verdict is ok; otherwise None."""
        if self._before is None:
            return None
        before, model = self._before
        at = self.plan.frames.index(frame)
        return model if at and before.name == self.plan.frames[at - 1].name else None

    def _moving(self, frame: Frame) -> dict[str, Any]:
        """Register and train a frame of moving cameras, from its own poses or else from those of the previous frame."""
        plan, settings = self.plan, self.plan.settings
        scene = frame.read(settings.normals_folder)
        data, normals_folder = frame.folder, settings.normals_folder
        before = self._poses_before(frame, scene)
        if scene.c2w is None and before is not None:
            data, normals_folder = plan.folder(frame) / "scene", None
            c2w, world_from_unit = before
            scene = replace(scene, c2w=c2w, world_from_unit=world_from_unit)
            _write_scene(data, scene)
        model = train_frame(
            "pmni", data, normals_folder, plan.folder(frame) / "run", None, settings.steps, settings.seed
        )
        statistics = model.registration_statistics
        assert statistics is not None
        return self._result(frame, scene, model, statistics["verdict"], statistics["reasons"])

    def _poses_before(self, frame: Frame, scene: Scene) -> tuple[np.ndarray, np.ndarray] | None:
        """Poses of the previous frame in its unit-sphere world, and the similarity from there to the data's world.

        None: there is no previous frame, it failed, or it has other views.
        """
        at = self.plan.frames.index(frame)
        record = None if at == 0 else self.plan.finished(self.plan.frames[at - 1])
        if record is None or record["verdict"] == "failed" or record["views"] != list(scene.names):
            return None
        world_from_unit = np.array(record["world_from_unit"])
        return transform_poses(np.linalg.inv(world_from_unit), np.array(record["c2w"])), world_from_unit

    def _fused(self, frame: Frame) -> Scene:
        """Scene of a frame at the shared poses, with normals fused over time."""
        plan, shared = self.plan, self.plan.shared
        assert shared is not None
        neighbors = plan.neighbors(frame)
        kept = {other.name for other in neighbors}
        self._scenes = {name: scene for name, scene in self._scenes.items() if name in kept}
        if frame.name not in self._scenes:
            self._scenes[frame.name] = shared.scene(self._read(frame))
        for other in neighbors:
            if other.name not in self._scenes:
                try:
                    self._scenes[other.name] = shared.scene(self._read(other))
                except PmniError as error:  # that frame's own record reports it
                    print(f"{frame.name}: is reconstructed without {other.name}: {error}", flush=True)
        scene = self._scenes[frame.name]
        around = [self._scenes[other.name] for other in neighbors if other.name in self._scenes]
        if len(around) == 1:
            return scene
        at = next(i for i, other in enumerate(around) if other is scene)
        normals = np.empty_like(scene.normals)
        for view in range(scene.num_views):
            maps = np.stack([other.normals[view] for other in around]).astype(np.float32)
            valid = np.stack([other.valid[view] for other in around])
            normals[view] = fuse_over_time(maps, valid, [at])[0]
        return replace(scene, normals=normals)

    def _read(self, frame: Frame) -> Scene:
        """Read a frame, and check that its cameras are those of the frame that the poses were registered from."""
        scene, shared = frame.read(self.plan.settings.normals_folder), self.plan.shared
        assert shared is not None
        if self._reference is None:
            reference = next(one for one in self.plan.frames if one.name == shared.frame)
            self._reference = reference.read(self.plan.settings.normals_folder)
        check_same_cameras(self._reference, scene)
        return scene

    def _verdict(self, views: Views, poses: Poses, surface: Surface) -> Verdict:
        """Verdict on whether the frame's views agree on its surface; doubts about the shared poses do not count."""
        everything = np.ones(len(views), dtype=bool)
        intrinsics, bias = unchanged_intrinsics(None, "those of all frames"), unknown_bias("that of all frames")
        agreement = view_agreement(views, poses, surface)
        return judge(views, agreement, everything, ~everything, None, None, intrinsics, bias)

    def _result(self, frame: Frame, scene: Scene, model: PmniModel, verdict: str, reasons: list[str]) -> dict[str, Any]:
        """Write the mesh of a trained frame, and return the entries of its record."""
        plan = self.plan
        mesh = extract_mesh(model.field.sdf, plan.settings.resolution, device=model.device, progress=False)
        mesh = transformed_mesh(mesh, scene.world_from_unit)
        plan.mesh(frame).parent.mkdir(exist_ok=True)
        write_mesh(plan.mesh(frame), mesh)
        c2w = data_world_poses(scene, range(scene.num_views), model.camera_optimizer.c2w_opencv_double())
        return {
            "verdict": verdict,
            "reasons": reasons,
            "views": list(scene.names),
            "mesh": str(plan.mesh(frame).relative_to(plan.out)),
            "faces": len(mesh.faces),
            "watertight": bool(mesh.is_watertight),
            "c2w": c2w.tolist(),
            "world_from_unit": scene.world_from_unit.tolist(),
        }


def _write_scene(folder: Path, scene: Scene) -> None:
    """Write the scene folder that a frame is trained on."""
    write_scene(
        folder,
        names=scene.names,
        K=scene.K,
        c2w=scene.c2w,
        world_from_unit=scene.world_from_unit,
        masks=scene.masks,
        normals=scene.normals.astype(np.float32),
        normals_folder=NORMALS,
        unknown=scene.unknown,
        sizes=scene.sizes,
    )


def main(arguments: list[str]) -> None:
    """Reconstruct frames of a sequence that are not done yet.

    Args:
        arguments: output folder of the sequence, which holds the plan, and the names of the frames.

    Raises:
        PmniError: the plan or a record cannot be read.
    """
    hide_dependency_warnings()
    plan = Plan.load(Path(arguments[0]))
    block = Block(plan)
    names = set(arguments[1:])
    for frame in plan.frames:
        if frame.name in names and plan.finished(frame) is None:
            block.run(frame)


if __name__ == "__main__":
    try:
        with exit_on_error():
            main(sys.argv[1:])
    except KeyboardInterrupt:
        raise exit_interrupted("stopped") from None

# SPDX-License-Identifier: Apache-2.0
"""`pmni sequence DIR`: an object at several moments, a surface for each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pmni_nerfstudio.commands.checks import check_resolution, check_seed
from pmni_nerfstudio.errors import FailedResultError, PmniError, print_warnings

if TYPE_CHECKING:
    from rich.console import Console

    from pmni_nerfstudio.sequences.frames import Frame
    from pmni_nerfstudio.sequences.plan import Plan
    from pmni_nerfstudio.sequences.shared_poses import SharedPoses


@dataclass(kw_only=True)
class SequenceCommand:
    """Reconstruct an object at several moments: scenes DIR/frames/NNNN, or DIR/NNNN, one for each moment.

    With static cameras the poses are solved once, from all frames together, and normals are fused over time where the
    surface does not move. Moving cameras are registered frame by frame. Frames that are done in the output folder are
    not done again. The exit code is 2 if a frame failed or is doubtful, or if the common poses are doubtful; all
    other results are written nevertheless.
    """

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Folder of the sequence."""
    output_dir: Path
    """Folder for meshes/NNNN.ply, sequence.glb, sequence.json, the cameras and the training runs."""
    cameras: Literal["static", "moving"] = "static"
    """static: the cameras have the same poses in all frames, and the object moves or deforms; moving: every frame has
    poses of its own, as on a turntable that is photographed at several moments."""
    normals_folder: str | None = None
    """Name of the folder with the normal maps in every frame, if there are several."""
    fuse: bool = True
    """Fuse the normals of static cameras over time, where the surface does not move."""
    steps: int = 0
    """Training steps of each frame; 0: chosen by the kind of cameras and the size of the maps."""
    resolution: int = 256
    """Marching cubes cells along the diameter of the scene's sphere."""
    seed: int = 0
    """Seed of registration and training."""
    engine: Literal["local", "ray"] = "local"
    """local: the cores or GPUs of this machine; ray: the Ray cluster named by RAY_ADDRESS, or else a local Ray
    instance."""
    jobs: int | None = None
    """Number of blocks of frames at the same time, each in a process of its own; by default one per GPU, or one per two
    cores without a GPU, or on Ray as many as fit."""
    block: int | None = None
    """Number of frames in a block; by default all frames divided by the jobs, on Ray 16."""

    def main(self) -> None:
        """Solve the poses, reconstruct the frames, and write the results.

        Raises:
            PmniError: an option or a frame is invalid.
            FailedResultError: a frame failed or is doubtful, or the common poses are; the results have been written.
        """
        self._check()
        from rich.console import Console

        from pmni_nerfstudio.data.files import output_folder
        from pmni_nerfstudio.data.folder_lock import lock_folder
        from pmni_nerfstudio.sequences.frames import check_output_folder, find_frames

        frames = find_frames(self.data)
        check_output_folder(self.output_dir, self.data, frames)
        with output_folder(self.output_dir), lock_folder(self.output_dir):
            self._run(frames, Console())

    def _check(self) -> None:
        for name in ("jobs", "block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PmniError(f"{name}: {value} is not positive; give 1 or more")
        if self.steps < 0:
            raise PmniError(f"steps: {self.steps} is negative; give 0 or more")
        check_seed(self.seed)
        check_resolution(self.resolution)

    def _run(self, frames: list[Frame], console: Console) -> None:
        from pmni_nerfstudio.sequences.plan import Plan, Settings
        from pmni_nerfstudio.sequences.results import write_results
        from pmni_nerfstudio.sequences.running import run_frames

        settings = Settings(self.normals_folder, self.fuse, self.steps, self.resolution, self.seed)
        shared = self._shared_poses(frames, console) if self.cameras == "static" else None
        # Processes have other working directories on a cluster.
        absolute = tuple(replace(frame, folder=frame.folder.resolve()) for frame in frames)
        plan = Plan(self.output_dir.resolve(), absolute, settings, shared)
        plan.save()
        records = run_frames(plan, self.engine, self.jobs, self.block, console)
        self._finish(plan, records, write_results(plan, records), console)

    def _shared_poses(self, frames: list[Frame], console: Console) -> SharedPoses:
        from pmni_nerfstudio.sequences.frames import check_same_cameras, spread
        from pmni_nerfstudio.sequences.shared_poses import MAX_FRAMES, solve_shared_poses

        scenes, names, errors = [], [], []
        for frame in spread(frames, MAX_FRAMES):
            try:
                scene = frame.read(self.normals_folder)
                if scenes:
                    check_same_cameras(scenes[0], scene)
                scenes.append(scene)
                names.append(frame.name)
            except PmniError as error:  # reported again, as the result of this frame
                errors.append(error)
        if len(scenes) < 2:
            raise errors[0]
        print_warnings(dict.fromkeys(scenes[0].warnings))
        shared = solve_shared_poses(scenes, names, self.seed, self.output_dir / "registration", console)
        console.print(
            f"Poses: {len(shared.views)} of {scenes[0].num_views} static cameras, from {len(scenes)} of {len(frames)} "
            f"frames; verdict of frame {shared.frame}: {shared.verdict}",
            highlight=False,
        )
        print_warnings(shared.reasons)
        return shared

    def _finish(self, plan: Plan, records: dict[str, dict[str, Any]], files: list[Path], console: Console) -> None:
        """Print what was made, the verdict and the next command.

        Raises:
            FailedResultError: a frame failed or is doubtful, or the common poses are.
        """
        import shlex

        by_verdict = {
            verdict: [name for name, record in records.items() if record["verdict"] == verdict]
            for verdict in ("ok", "doubtful", "failed")
        }
        meshes = sum(record["error"] is None for record in records.values())
        named = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in by_verdict.items() if names)
        poses = None if plan.shared is None else plan.shared.verdict
        shown = f"frames {named}" if poses is None else f"poses {poses}; frames {named}"
        lines = [f"Made: meshes of {meshes} of {len(records)} frames", f"Verdict: {shown}"]
        lines += [f"wrote {file}" for file in files]
        if meshes:
            lines.append(f"Next: {shlex.join(['pmni', 'view', str(self.output_dir)])}")
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        wrong = by_verdict["failed"] + by_verdict["doubtful"]
        if wrong:
            raise FailedResultError(
                f"{self.output_dir}: {len(wrong)} of {len(records)} frames failed or are doubtful: {', '.join(wrong)}; "
                f"the reasons are in {plan.out / 'sequence.json'}"
            )
        if poses not in (None, "ok"):
            raise FailedResultError(
                f"{self.output_dir}: the poses of all frames are {poses}, for the reasons above; the results were written"
            )

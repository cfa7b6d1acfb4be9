# SPDX-License-Identifier: Apache-2.0
"""Blocks of frames, each reconstructed in a process of its own, on this machine or on a Ray cluster."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from pmni_nerfstudio.data.files import read_json_object
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.sequences.frames import Frame
from pmni_nerfstudio.sequences.plan import RECORD, Plan
from pmni_nerfstudio.studies.engines import (
    available_gpus,
    default_parallel_jobs,
    run_locally,
    run_on_ray,
)
from pmni_nerfstudio.studies.processes import BIN_FOLDER, Cancellation, run_command

Engine = Literal["local", "ray"]
LOGS = "logs"
_POLL_S = 0.5
_RAY_BLOCK = 16
"""Frames in a block on a Ray cluster by default."""


@dataclass(frozen=True)
class BlockResult:
    """Outcome of the process that reconstructed a block of frames."""

    frames: tuple[str, ...]
    reason: str | None
    """Why it failed; None if it did not."""


def blocks_of(frames: Sequence[Frame], size: int | None, engine: Engine, parallel: int) -> list[tuple[str, ...]]:
    """Consecutive frames for one process each; by default as many blocks as run at the same time."""
    size = size or (_RAY_BLOCK if engine == "ray" else max(1, -(-len(frames) // parallel)))
    names = [frame.name for frame in frames]
    return [tuple(names[i : i + size]) for i in range(0, len(names), size)]


def run_block(
    job: tuple[str, ...],
    out: Path,
    environment: Mapping[str, str] | None = None,
    bin_folder: Path = BIN_FOLDER,
    cancellation: Cancellation | None = None,
) -> BlockResult:
    """Reconstruct a block of frames in a process of its own.

    Args:
        job: names of the frames.
        out: output folder of the sequence.
        environment: variables to add to the environment of the process.
        bin_folder: folder of the Python program.
        cancellation: allows another thread to cancel the block.

    Raises:
        Canceled: the block was canceled.
    """
    command = ["python", "-m", "pmni_nerfstudio.sequences.block", str(out), *job]
    log = out / LOGS / f"{job[0]}-{job[-1]}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        name = f"frame {job[0]}" if len(job) == 1 else f"frames {job[0]} to {job[-1]}"
        run_command(command, log, bin_folder, environment, cancellation, name)
    except PmniError as error:
        return BlockResult(job, str(error))
    return BlockResult(job, None)


def lost_block(job: tuple[str, ...], reason: str, out: Path) -> BlockResult:
    """Result of a block whose worker the cluster lost."""
    del out
    return BlockResult(job, reason)


def run_frames(
    plan: Plan, engine: Engine, jobs: int | None, block: int | None, console: Console
) -> dict[str, dict[str, Any]]:
    """Reconstruct the frames that are not done, with a line for each as it ends.

    Args:
        plan: the sequence, saved in its folder.
        engine: local or ray, as for suites.
        jobs: blocks at the same time; None: chosen by the engine.
        block: frames in a block; None: chosen by the engine.
        console: where to report.

    Returns:
        The record of every frame by its name; frames that a failed process left without one get one with its error.

    Raises:
        PmniError: a record cannot be read, or the engine does not start.
        SystemExit: with code 130, after Ctrl-C.
    """
    waiting = [frame for frame in plan.frames if plan.finished(frame) is None]
    if len(waiting) < len(plan.frames):
        console.print(f"{len(plan.frames) - len(waiting)} of {len(plan.frames)} frames are done.")
    gpus = available_gpus()
    parallel = jobs or default_parallel_jobs(gpus)
    blocks = blocks_of(waiting, block, engine, parallel)
    for frame in waiting:  # a record of earlier settings or of an error is not that of this run
        (plan.folder(frame) / RECORD).unlink(missing_ok=True)
    failures: dict[str, str] = {}
    try:
        with (
            _Reporter(plan, waiting, console),
            closing(_running(blocks, plan.out, engine, jobs, parallel, gpus, console)) as results,
        ):
            for result in results:
                failures |= {name: result.reason for name in result.frames if result.reason is not None}
    except KeyboardInterrupt:
        message = f"Stopped. Finished frames are kept in {plan.out}; run the same command again to continue."
        console.print(message, highlight=False, soft_wrap=True, markup=False)
        raise SystemExit(130) from None
    records = {}
    for frame in plan.frames:
        path = plan.folder(frame) / RECORD
        if path.is_file():
            records[frame.name] = read_json_object(path, "remove it to reconstruct this frame again")
        else:
            reason = failures.get(frame.name, "the process of its block ended without a result")
            records[frame.name] = {
                "frame": frame.name,
                "error": reason,
                "verdict": "failed",
                "reasons": [reason],
                "seconds": None,
            }
    return records


def _running(
    blocks: Sequence[tuple[str, ...]],
    out: Path,
    engine: Engine,
    jobs: int | None,
    parallel: int,
    gpus: Sequence[str],
    console: Console,
) -> Generator[BlockResult, None, None]:
    if not blocks:
        return (result for result in ())
    if engine == "ray":
        return run_on_ray(run_block, lost_block, blocks, out, jobs, on_start=console.print)
    return run_locally(run_block, blocks, out, parallel, gpus)


class _Reporter(threading.Thread):
    """Prints a line for each frame whose record appears, within a `with` block."""

    def __init__(self, plan: Plan, frames: Sequence[Frame], console: Console) -> None:
        super().__init__(daemon=True)
        self._plan, self._waiting, self._console = plan, list(frames), console
        self._total, self._ended = len(frames), threading.Event()

    def run(self) -> None:
        """Look for records until the block ends."""
        while not self._ended.wait(_POLL_S):
            self._report()

    def _report(self) -> None:
        for frame in list(self._waiting):
            path = self._plan.folder(frame) / RECORD
            if path.is_file():
                self._waiting.remove(frame)
                record = read_json_object(path, "remove it to reconstruct this frame again")
                done = self._total - len(self._waiting)
                self._console.print(
                    f"[{done}/{self._total}] {escape(frame_line(record))}".replace("[", r"\[", 1),
                    highlight=False,
                    soft_wrap=True,
                )

    def __enter__(self) -> _Reporter:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()
        self._report()


def frame_line(record: Mapping[str, Any]) -> str:
    """One line about a frame."""
    if record["error"] is not None:
        return f"frame {record['frame']}: failed: {record['error']}"
    reasons = f" ({'; '.join(record['reasons'])})" if record["reasons"] else ""
    return (
        f"frame {record['frame']}: {record['verdict']}{reasons}, {record['faces']:,} faces, {record['seconds']:.0f} s"
    )

# SPDX-License-Identifier: Apache-2.0
"""One method on one scene: trained, measured, and recorded, in a folder of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.scene import CAMERAS, DEPTHS, INTRINSICS
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.ground_truth import truth_folder
from pmni_nerfstudio.evaluation.record import METRICS
from pmni_nerfstudio.studies.processes import BIN, Spent, Stop, run_command

RECORD = "record.json"
TRUE_CAMERAS = "cameras_true.npz"
"""In a truth folder, in the layout of cameras_sphere.npz."""
GIVEN_POSES = ("pmni-calibrated", "neus-facto-small", "neus-facto", "neus")
"""Methods that need poses: they get the true ones where those are known."""
STOCK = ("neus-facto-small", "neus-facto", "neus")
"""Methods that read sdfstudio's format."""
NEED_DEPTHS = ("pmni-original",)
"""Methods whose losses need depth maps."""


@dataclass(frozen=True)
class Job:
    """What is to be done."""

    method: str
    scene: Path
    seed: int = 42
    flags: tuple[str, ...] = ()
    """More of ns-train's."""
    eval_flags: tuple[str, ...] = ()
    """More of pmni eval's."""
    truth: Path | None = None
    """Where it isn't in the scene's folder."""

    @property
    def name(self) -> str:
        """Of its folder: the same for the same work."""
        truth = None if self.truth is None else self.truth.resolve()
        work = (self.method, str(self.scene.resolve()), self.seed, self.flags, self.eval_flags, str(truth))
        digest = hashlib.sha256(repr(work).encode()).hexdigest()[:8]
        return f"{self.scene.resolve().name}_{self.method}_{self.seed}_{digest}"

    @property
    def truth_folder(self) -> Path | None:
        """The truth's folder, where there is one."""
        return self.truth if self.truth is not None else truth_folder(self.scene)


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    method: str
    scene: str
    seed: int
    seconds: float | None
    """Wall time of ns-train."""
    peak_gb: float | None
    """Most memory that ns-train held on the host."""
    metrics: dict[str, Any] | None
    """As `pmni eval` wrote them."""
    reason: str | None
    """Why there are none."""
    folder: str
    """With the run, the measures and the log."""
    flags: tuple[str, ...] = ()
    """Of ns-train's, more than the method's name."""

    @property
    def label(self) -> str:
        """What was trained: the method, and its flags."""
        return " ".join((self.method, *self.flags))


def train_command(method: str, data: Path, out: Path, flags: Sequence[str]) -> list[str]:
    """`ns-train` without a viewer, with one checkpoint at its end, into a folder of a fixed name."""
    fixed = ["--experiment-name", "e", "--timestamp", "t", "--vis", "tensorboard", "--steps-per-save", "1000000"]
    return ["ns-train", method, "--data", str(data), "--output-dir", str(out), *fixed, *flags]


def config_of(method: str, out: Path) -> Path:
    """Where that folder's config.yml is."""
    return out / "e" / method / "t" / "config.yml"


def finished(job: Job, out: Path) -> Outcome | None:
    """The outcome of a job that was done before in this folder; None where it wasn't, or has failed.

    Raises:
        PmniError: its record is broken.
    """
    path = out / job.name / RECORD
    if not path.is_file():
        return None
    try:
        outcome = Outcome(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise PmniError(f"{path}: can't be read ({error}): remove it to run this job again") from error
    # the folder may have been moved since
    return replace(outcome, folder=str(path.parent.resolve()), flags=job.flags) if outcome.reason is None else None


def run_job(
    job: Job,
    out: Path,
    environment: Mapping[str, str] | None = None,
    bin_folder: Path = BIN,
    stop: Stop | None = None,
) -> Outcome:
    """Train and measure. What was begun before and not finished is begun again. A failure is an outcome with a reason.

    Args:
        job: to be done.
        out: folder of all jobs.
        environment: added to the processes'.
        bin_folder: of ns-train and pmni.
        stop: ends it early, without an outcome.

    Raises:
        Stopped: `stop` was set.
    """
    folder = out / job.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = partial(run_command, log=folder / "log.txt", bin_folder=bin_folder, environment=environment, stop=stop)
    seconds = peak_gb = metrics = reason = None
    try:
        data = _data_for(job, folder, run)
        flags = ["--machine.seed", str(job.seed), *job.flags]
        spent = run(train_command(job.method, data, folder / "run", flags))
        seconds, peak_gb = round(spent.seconds, 2), round(spent.peak_mb / 1024, 3)
        config = config_of(job.method, folder / "run")
        measure = ["pmni", "eval", "--load-config", str(config), "--output-dir", str(folder / "result")]
        truth = [] if job.truth_folder is None else ["--truth", str(job.truth_folder)]
        run([*measure, *truth, *job.eval_flags])
        metrics = json.loads((folder / "result" / METRICS).read_text(encoding="utf-8"))
    except PmniError as error:
        reason = str(error)
    where = str(folder.resolve())
    outcome = Outcome(
        job.method, str(job.scene.resolve()), job.seed, seconds, peak_gb, metrics, reason, where, job.flags
    )
    with atomic_path(folder / RECORD) as path:
        path.write_text(json.dumps(asdict(outcome), indent=1) + "\n", encoding="utf-8")
    return outcome


def with_reason(job: Job, reason: str, out: Path) -> Outcome:
    """The outcome of a job that can't be run here."""
    scene, folder = str(job.scene.resolve()), str(out / job.name)
    return Outcome(job.method, scene, job.seed, None, None, None, reason, folder, job.flags)


def why_not(method: str) -> str | None:
    """Why a method can't run on this machine; None where it can.

    Raises:
        PmniError: nobody knows it.
    """
    import torch
    from nerfstudio.configs.method_configs import all_methods
    from nerfstudio.utils.external import TCNN_EXISTS

    if method not in all_methods:
        ours = ", ".join(sorted(name for name in all_methods if name.startswith("pmni") or name in STOCK))
        raise PmniError(f"methods: nerfstudio has no method {method!r}: choose from {ours}")
    if method in ("neus-facto", "neus") and not (torch.cuda.is_available() and TCNN_EXISTS):
        return "needs a CUDA device and tinycudann (neus-facto-small runs without)"
    return None


def _data_for(job: Job, folder: Path, run: Callable[[list[str]], Spent]) -> Path:
    """The scene as the method reads it: itself, or a copy of links with true cameras, depth maps, or another format."""
    data, truth = job.scene, job.truth_folder
    if job.method in GIVEN_POSES and truth is not None and (truth / TRUE_CAMERAS).is_file():
        data = _linked(data, folder / "scene", leave=(CAMERAS, INTRINSICS))
        os.symlink((truth / TRUE_CAMERAS).resolve(), data / CAMERAS)
    if job.method in NEED_DEPTHS and not (data / DEPTHS).is_dir():
        # a link to what there is of its folder would have them written into the scene itself
        data = _linked(data, folder / "scene", leave=(Path(DEPTHS).parts[0],))
        run(["pmni", "integrate", str(data)])
    if job.method in STOCK:
        target = folder / "sdfstudio"
        run(["pmni", "convert", str(data), "--to", "sdfstudio", "--output-dir", str(target)])
        data = target
    return data


def _linked(scene: Path, copy: Path, leave: tuple[str, ...]) -> Path:
    copy.mkdir()
    for entry in scene.iterdir():
        if entry.name not in leave:
            os.symlink(entry.resolve(), copy / entry.name)
    return copy

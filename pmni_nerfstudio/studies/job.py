# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation of one method on one scene, in a folder of its own."""

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

from pmni_nerfstudio.data.atomic import write_json
from pmni_nerfstudio.data.scene import CAMERAS, DEPTHS, INTRINSICS
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.ground_truth import ground_truth_folder
from pmni_nerfstudio.evaluation.metrics_file import METRICS_FILE
from pmni_nerfstudio.studies.processes import BIN_FOLDER, Cancellation, ResourceUsage, run_command

RECORD = "record.json"
TRUE_CAMERAS = "cameras_true.npz"
"""True cameras in a ground-truth folder, in the layout of cameras_sphere.npz."""
CALIBRATED_METHODS = ("pmni-calibrated", "neus-facto-small", "neus-facto", "neus")
"""Methods that need poses; they get the true poses if these are known."""
SDFSTUDIO_METHODS = ("neus-facto-small", "neus-facto", "neus")
"""Methods that read sdfstudio's format."""
DEPTH_METHODS = ("pmni-original",)
"""Methods with losses that need depth maps."""


@dataclass(frozen=True)
class Job:
    """One method to train and evaluate on one scene."""

    method: str
    """Name of an ns-train method."""
    scene: Path
    """Scene folder."""
    seed: int = 42
    """Random seed of the training."""
    flags: tuple[str, ...] = ()
    """Additional flags of ns-train."""
    eval_flags: tuple[str, ...] = ()
    """Additional flags of `pmni eval`."""
    ground_truth: Path | None = None
    """Ground-truth folder; None: the one in the scene folder, if there is one."""

    @property
    def name(self) -> str:
        """Name of the job's folder, which is the same for equal jobs."""
        ground_truth = None if self.ground_truth is None else self.ground_truth.resolve()
        work = (self.method, str(self.scene.resolve()), self.seed, self.flags, self.eval_flags, str(ground_truth))
        digest = hashlib.sha256(repr(work).encode()).hexdigest()[:8]
        return f"{self.scene.resolve().name}_{self.method}_{self.seed}_{digest}"

    @property
    def ground_truth_folder(self) -> Path | None:
        """Folder with the scene's ground truth, or None if the scene has none."""
        return self.ground_truth if self.ground_truth is not None else ground_truth_folder(self.scene)


@dataclass(frozen=True)
class JobResult:
    """Metrics and cost of a job, or the reason why it failed."""

    method: str
    """Name of the ns-train method."""
    scene: str
    """Scene folder."""
    seed: int
    """Random seed of the training."""
    seconds: float | None
    """Wall time of ns-train."""
    peak_gb: float | None
    """Peak resident memory of ns-train on the host, in GB."""
    metrics: dict[str, Any] | None
    """Contents of the metrics.json that `pmni eval` wrote; None if the job failed."""
    reason: str | None
    """Reason of the failure; None if the job succeeded."""
    folder: str
    """Folder with the training run, the evaluation and the log."""
    flags: tuple[str, ...] = ()
    """Additional flags of ns-train."""

    @property
    def label(self) -> str:
        """Method and flags, as on the command line."""
        return " ".join((self.method, *self.flags))


def train_command(method: str, data: Path, out: Path, flags: Sequence[str]) -> list[str]:
    """Command line of ns-train without a viewer, with one final checkpoint and a fixed run folder."""
    fixed = ["--experiment-name", "e", "--timestamp", "t", "--vis", "tensorboard", "--steps-per-save", "1000000"]
    return ["ns-train", method, "--data", str(data), "--output-dir", str(out), *fixed, *flags]


def config_path(method: str, out: Path) -> Path:
    """Path of the config.yml that `train_command` writes."""
    return out / "e" / method / "t" / "config.yml"


def read_finished(job: Job, out: Path) -> JobResult | None:
    """Read the recorded result of a job; None if the job has not run or has failed.

    Args:
        job: job to look up.
        out: folder of all jobs.

    Raises:
        PmniError: the record cannot be read.
    """
    path = out / job.name / RECORD
    if not path.is_file():
        return None
    try:
        result = JobResult(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise PmniError(f"{path}: can't be read ({error}); remove it to run this job again") from error
    # The folder may have been moved since it was written.
    return replace(result, folder=str(path.parent.resolve()), flags=job.flags) if result.reason is None else None


def run_job(
    job: Job,
    out: Path,
    environment: Mapping[str, str] | None = None,
    bin_folder: Path = BIN_FOLDER,
    cancellation: Cancellation | None = None,
) -> JobResult:
    """Train, evaluate and record a job from the start; a failure is returned as a result with a reason.

    Args:
        job: job to run.
        out: folder of all jobs.
        environment: variables to add to the environment of the processes.
        bin_folder: folder of ns-train and pmni.
        cancellation: allows another thread to cancel the job.

    Raises:
        Canceled: the job was canceled.
    """
    folder = out / job.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = partial(
        run_command,
        log=folder / "log.txt",
        bin_folder=bin_folder,
        environment=environment,
        cancellation=cancellation,
    )
    seconds = peak_gb = metrics = reason = None
    try:
        data = _prepare_data(job, folder, run)
        flags = ["--machine.seed", str(job.seed), *job.flags]
        usage = run(train_command(job.method, data, folder / "run", flags))
        seconds, peak_gb = round(usage.seconds, 2), round(usage.peak_mb / 1024, 3)
        config = config_path(job.method, folder / "run")
        evaluate = ["pmni", "eval", "--load-config", str(config), "--output-dir", str(folder / "result")]
        ground_truth = [] if job.ground_truth_folder is None else ["--truth", str(job.ground_truth_folder)]
        run([*evaluate, *ground_truth, *job.eval_flags])
        metrics = json.loads((folder / "result" / METRICS_FILE).read_text(encoding="utf-8"))
    except PmniError as error:
        reason = str(error)
    scene = str(job.scene.resolve())
    result = JobResult(job.method, scene, job.seed, seconds, peak_gb, metrics, reason, str(folder.resolve()), job.flags)
    write_json(folder / RECORD, asdict(result))
    return result


def failed_result(job: Job, reason: str, out: Path) -> JobResult:
    """Result of a job that could not be run."""
    scene, folder = str(job.scene.resolve()), str(out / job.name)
    return JobResult(job.method, scene, job.seed, None, None, None, reason, folder, job.flags)


def unsupported_reason(method: str) -> str | None:
    """Reason why a method cannot run on this machine, or None if it can.

    Raises:
        PmniError: nerfstudio has no such method.
    """
    import torch
    from nerfstudio.configs.method_configs import all_methods
    from nerfstudio.utils.external import TCNN_EXISTS

    if method not in all_methods:
        supported = ", ".join(
            sorted(name for name in all_methods if name.startswith("pmni") or name in SDFSTUDIO_METHODS)
        )
        raise PmniError(f"methods: nerfstudio has no method {method!r}; choose from {supported}")
    if method in ("neus-facto", "neus") and not (torch.cuda.is_available() and TCNN_EXISTS):
        return "needs a CUDA device and tinycudann (neus-facto-small runs without)"
    return None


def _prepare_data(job: Job, folder: Path, run: Callable[[list[str]], ResourceUsage]) -> Path:
    """Data folder for the method: the scene, or a linked copy with true cameras or depth maps, or a converted copy."""
    data, ground_truth = job.scene, job.ground_truth_folder
    if job.method in CALIBRATED_METHODS and ground_truth is not None and (ground_truth / TRUE_CAMERAS).is_file():
        data = _link_scene(data, folder / "scene", exclude=(CAMERAS, INTRINSICS))
        os.symlink((ground_truth / TRUE_CAMERAS).resolve(), data / CAMERAS)
    if job.method in DEPTH_METHODS and not (data / DEPTHS).is_dir():
        # The folder of the depth maps is not linked, since they would be written through the link into the scene.
        data = _link_scene(data, folder / "scene", exclude=(Path(DEPTHS).parts[0],))
        run(["pmni", "integrate", str(data)])
    if job.method in SDFSTUDIO_METHODS:
        converted = folder / "sdfstudio"
        run(["pmni", "convert", str(data), "--to", "sdfstudio", "--output-dir", str(converted)])
        data = converted
    return data


def _link_scene(scene: Path, copy: Path, exclude: tuple[str, ...]) -> Path:
    copy.mkdir()
    for entry in scene.iterdir():
        if entry.name not in exclude:
            os.symlink(entry.resolve(), copy / entry.name)
    return copy

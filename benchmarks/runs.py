# SPDX-License-Identifier: Apache-2.0
"""Helpers of the benchmarks: commands run in processes of their own, their time and memory, and their metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.studies.job import config_path, train_command
from pmni_nerfstudio.studies.processes import ResourceUsage, run_command

NOISE = ["--jitter", "1", "--rotation-noise-deg", "15", "--translation-noise", "0.5"]
"""Flags of `pmni synth`: cameras scattered around a ring, and initial poses perturbed from the true ones."""


@dataclass(frozen=True)
class Trained:
    """Cost and metrics of a training run."""

    usage: ResourceUsage
    """Time and memory of ns-train."""
    metrics: dict | None
    """Metrics of `pmni eval`; None if the surface cannot be evaluated."""


def run(command: list[str], log: Path) -> ResourceUsage:
    """Run a command of this Python environment, with its output in a log file.

    Raises:
        SystemExit: the command failed; the message shows the end of the log.
    """
    try:
        return run_command(command, log)
    except PmniError as error:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{log.read_text()[-2000:]}\n{error}") from None


def make_scene(folder: Path, options: list[str]) -> Path:
    """Make a synthetic scene, and its ground truth in the folder FOLDER_truth."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    run(["pmni", "synth", str(folder), "--truth", f"{folder}_truth", *options], folder.with_suffix(".log"))
    return folder


def train(method: str, scene: Path, out: Path, options: list[str]) -> ResourceUsage:
    """Run ns-train without a viewer and with one final checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    return run(train_command(method, scene, out, options), out / "train.log")


def train_and_score(method: str, scene: Path, out: Path, options: list[str]) -> Trained:
    """Train, and evaluate mesh, poses and rendered normals against the ground truth."""
    usage = train(method, scene, out, options)
    config = str(config_path(method, out))
    try:
        run(
            ["pmni", "eval", "--load-config", config, "--truth", f"{scene}_truth", "--output-dir", str(out)],
            out / "eval.log",
        )
    except SystemExit as error:  # the result is too far from the ground truth
        print(str(error).splitlines()[-1])
        return Trained(usage, None)
    return Trained(usage, json.loads((out / "metrics.json").read_text()))

# SPDX-License-Identifier: Apache-2.0
"""Whole commands, each a process of its own: what they take and what comes out. For the benchmarks beside this file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.studies.job import config_of, train_command
from pmni_nerfstudio.studies.processes import Spent, run_command

NOISE = ["--jitter", "1", "--rotation-noise-deg", "15", "--translation-noise", "0.5"]
"""Of pmni synth: cameras off their ring, and poses that are off them in turn."""


@dataclass(frozen=True)
class Trained:
    """A method's run and its scores against the truth."""

    spent: Spent
    metrics: dict | None
    """What `pmni eval` says; None where it found nothing to measure."""


def run(command: list[str], log: Path) -> Spent:
    """Runs a command of this environment to its end; what it prints goes to a file.

    Raises:
        SystemExit: it failed; the end of its log is shown.
    """
    try:
        return run_command(command, log)
    except PmniError as error:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{log.read_text()[-2000:]}\n{error}") from None


def make_scene(folder: Path, options: list[str]) -> Path:
    """A synthetic scene, its truth in a folder of its own beside it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    run(["pmni", "synth", str(folder), "--truth", f"{folder}_truth", *options], folder.with_suffix(".log"))
    return folder


def train(method: str, scene: Path, out: Path, options: list[str]) -> Spent:
    """`ns-train`, without a viewer and with one checkpoint, at its end."""
    out.mkdir(parents=True, exist_ok=True)
    return run(train_command(method, scene, out, options), out / "train.log")


def train_and_score(method: str, scene: Path, out: Path, options: list[str]) -> Trained:
    """Trains, and measures mesh, poses and rendered normals."""
    spent = train(method, scene, out, options)
    config = str(config_of(method, out))
    try:
        run(
            ["pmni", "eval", "--load-config", config, "--truth", f"{scene}_truth", "--output-dir", str(out)],
            out / "eval.log",
        )
    except SystemExit as error:  # of a result that has nothing to do with the truth
        print(str(error).splitlines()[-1])
        return Trained(spent, None)
    return Trained(spent, json.loads((out / "metrics.json").read_text()))

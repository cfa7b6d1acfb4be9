# SPDX-License-Identifier: Apache-2.0
"""Measure wall time, CPU time and peak memory of the commands that make a result, alone or against another checkout.

    python benchmarks/bench_commands.py [--scene DIR] [--width 306 --height 256] [--baseline CHECKOUT --pairs 5]

`pmni register`, `ns-train pmni`, `pmni export` and `pmni eval` run one after another, each in a process of its own, with
default flags; start-up is included. With --baseline, each command runs alternately with this code and with that of
another checkout of the repository, so that other load on the machine affects both alike; the table then also has the
ratios of the medians. Without --scene, a synthetic scene is made; its ground truth is evaluated, and printed below.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import runs
from rich.console import Console
from rich.table import Table

QUANTITIES = ("wall", "user", "system", "memory")


@dataclass(frozen=True)
class Cost:
    """Cost of one command."""

    wall: float
    """Wall time in seconds."""
    user: float
    """CPU time in user mode, seconds, over all threads."""
    system: float
    """CPU time in the kernel, seconds: largely page faults of temporary arrays."""
    memory: float
    """Peak resident memory in GB."""


def measure(command: list[str], checkout: Path, log: Path) -> Cost:
    """Run a command of this Python environment with the code of a checkout.

    Raises:
        SystemExit: the command failed.
    """
    with log.open("ab") as file:
        start = time.perf_counter()
        program = str(Path(sys.executable).parent / command[0])
        process = subprocess.Popen(
            [program, *command[1:]], stdout=file, stderr=file, env={**os.environ, "PYTHONPATH": str(checkout)}
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: failed, see {log}:\n{log.read_text()[-1500:]}")
    return Cost(time.perf_counter() - start, usage.ru_utime, usage.ru_stime, usage.ru_maxrss / 2**20)


def commands(scene: Path, out: Path, steps: int | None) -> dict[str, list[str]]:
    """The measured commands by name; each needs the output of those before it."""
    truth = Path(f"{scene}_truth")
    training = ["ns-train", "pmni", "--data", str(scene), "--output-dir", str(out), "--vis", "tensorboard"]
    training += ["--experiment-name", out.name, "--timestamp", "run"]
    training += [] if steps is None else ["--max-num-iterations", str(steps)]
    config = str(out / out.name / "pmni" / "run" / "config.yml")
    evaluation = ["pmni", "eval", "--load-config", config, "--output-dir", str(out / "result")]
    return {
        "pmni register": ["pmni", "register", str(scene), "--output-dir", str(out / "registered")],
        "ns-train pmni": training,
        "pmni export": ["pmni", "export", "--load-config", config, "--output-dir", str(out / "mesh")],
        "pmni eval": evaluation + (["--truth", str(truth)] if truth.is_dir() else []),
    }


def main() -> None:
    """Measure all commands, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, help="scene folder; its ground truth is DIR_truth, if that exists")
    parser.add_argument("--shape", default="figure", help="shape of pmni synth, without --scene")
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--width", type=int, default=306)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--baseline", type=Path, help="another checkout of the repository to compare with")
    parser.add_argument("--pairs", type=int, default=1, help="runs of each command and checkout")
    parser.add_argument("--steps", type=int, help="largest number of training steps")
    arguments = parser.parse_args()
    checkouts = {"this": Path(__file__).resolve().parents[1]}
    if arguments.baseline is not None:
        checkouts["baseline"] = arguments.baseline.resolve()
    costs: dict[tuple[str, str], list[Cost]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = ["--views", str(arguments.views), "--width", str(arguments.width), "--height", str(arguments.height)]
        scene = arguments.scene or runs.make_scene(folder / "scene", ["--shape", arguments.shape, *size, *runs.NOISE])
        for _ in range(arguments.pairs):
            for label in checkouts:
                shutil.rmtree(folder / label, ignore_errors=True)  # else, training would take up the registration
            for command in commands(scene, folder, arguments.steps):
                for label, checkout in checkouts.items():
                    out = folder / label
                    out.mkdir(exist_ok=True)
                    line = commands(scene, out, arguments.steps)[command]
                    costs.setdefault((command, label), []).append(measure(line, checkout, folder / f"{label}.log"))
        Console(width=110).print(_table(costs, list(checkouts)))
        for label in checkouts:
            metrics = json.loads((folder / label / "result" / "metrics.json").read_text())
            print(f"{label}: {json.dumps({key: metrics[key] for key in ('surface', 'poses') if key in metrics})}")


def _table(costs: dict[tuple[str, str], list[Cost]], labels: list[str]) -> Table:
    """Medians of each command, and this code's ratio to the baseline."""
    table = Table(title="medians; ratios of this code to the baseline" if len(labels) > 1 else "medians")
    for column in ("command", "code", "wall (s)", "user (s)", "system (s)", "memory (GB)"):
        table.add_column(column, justify="left" if column in ("command", "code") else "right")
    for command in dict.fromkeys(command for command, _ in costs):
        medians = [
            [statistics.median(getattr(cost, quantity) for cost in costs[command, label]) for quantity in QUANTITIES]
            for label in labels
        ]
        for label, values in zip(labels, medians, strict=True):
            table.add_row(command, label, *(f"{value:.2f}" for value in values))
        if len(labels) > 1:
            table.add_row("", "ratio", *(f"{ours / theirs:.2f}" for ours, theirs in zip(*medians, strict=True)))
    return table


if __name__ == "__main__":
    main()

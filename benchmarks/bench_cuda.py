# SPDX-License-Identifier: Apache-2.0
"""Measure training on a GPU by encoding: steps per second, synchronizations and memory, at the size of DiLiGenT-MV.

    python benchmarks/bench_cuda.py [--width 612] [--height 512] [--steps 300] [--device cuda]

Each encoding trains `pmni-calibrated` as ns-train does on the same synthetic scene, with the defaults for CUDA. The column
"syncs" counts, per step, how often the host waits for the GPU, as reported by PyTorch: once to copy the batch, and once
for each tensor whose length depends on the data, such as the patches that meet the surface. "normals" is the error of the
rendered normals after the training: a faster encoding is worthwhile only if this is not larger. tinycudann is skipped if
it is not installed. --device cpu checks that the script runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from bench_training import set_up_ours
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer
from rich.console import Console
from rich.table import Table

from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.fields.hash_encoding import tcnn_usable
from pmni_nerfstudio.fields.sdf_field import PmniFieldConfig


@dataclass(frozen=True)
class Result:
    """Measurements of one encoding."""

    steps_per_second: float
    syncs: float
    """Mean number of synchronizations per step; NaN on a CPU."""
    device_gb: float
    """Peak memory allocated on the GPU in GB; NaN on a CPU."""
    mae_deg: float
    """Mean angular error of the rendered normals in degrees."""


def measure(trainer: Trainer, steps: int) -> Result:
    """Train for some steps, and measure them."""
    cuda = trainer.device.startswith("cuda")
    seconds, syncs = [], []
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for step in range(steps):
        trainer.pipeline.train()
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if cuda:
                torch.cuda.set_sync_debug_mode("warn")
            for callback in trainer.callbacks:
                callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
            trainer.train_iteration(step)
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
                torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        syncs.append(sum("synchroniz" in str(warning.message) for warning in caught))
    metrics = trainer.pipeline.get_average_eval_image_metrics()
    return Result(
        steps_per_second=1 / statistics.median(seconds[steps // 10 :]),
        syncs=statistics.mean(syncs) if cuda else float("nan"),
        device_gb=torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan"),
        mae_deg=metrics["normal_mae_deg"],
    )


def main() -> None:
    """Train with each encoding on one scene, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="figure", help="shape of pmni synth")
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--width", type=int, default=612)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rays", type=int, default=8192, help="rays per batch")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device found; use --device cpu to check that the script runs")
    fields = {
        "grid": PmniFieldConfig(encoding="grid"),
        "hash, PyTorch": PmniFieldConfig(encoding="hash", hash_implementation="torch"),
        "hash, tinycudann": PmniFieldConfig(encoding="hash", hash_implementation="tcnn"),
    }
    console = Console(width=100)
    if not tcnn_usable():
        del fields["hash, tinycudann"]
        console.print("tinycudann is skipped: it is not installed, or there is no GPU")
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    table = Table(title=f"{arguments.width}x{arguments.height}, {arguments.rays} rays per step, {name}")
    for column in ("encoding", "steps/s", "ratio", "syncs", "GB", "normals, deg"):
        table.add_column(column, justify="left" if column == "encoding" else "right")
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene"
        size = {"views": arguments.views, "width": arguments.width, "height": arguments.height}
        SynthCommand(out=scene, shape=arguments.shape, mesh_resolution=64, **size).main()
        first = 0.0
        for encoding, field in fields.items():
            out = Path(folder) / encoding
            changes = {"model__sdf_field": field, "datamanager__train_num_rays_per_batch": arguments.rays}
            trainer = set_up_ours(scene, out, arguments.steps, arguments.device, **changes)
            result = measure(trainer, arguments.steps)
            first = first or result.steps_per_second
            table.add_row(
                encoding,
                f"{result.steps_per_second:.1f}",
                f"{result.steps_per_second / first:.2f}",
                f"{result.syncs:.1f}",
                f"{result.device_gb:.2f}",
                f"{result.mae_deg:.2f}",
            )
    console.print(table)


if __name__ == "__main__":
    main()

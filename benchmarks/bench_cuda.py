# SPDX-License-Identifier: Apache-2.0
"""Training on a GPU: steps per second, waits of the host and memory, by encoding, at full DiLiGenT-MV size.

    python benchmarks/bench_cuda.py [--width 612] [--height 512] [--steps 300] [--device cuda]

Each encoding trains `pmni-calibrated` on the same synthetic scene as `ns-train` does, with CUDA's defaults otherwise; its
error is that of rendered normals at the end. tinycudann is left out, with a line, where it isn't installed. A wait is a
place of the step where the host asks the GPU for a value and stops until it has it (torch's own count); copying the
batch is one, and each tensor whose length depends on the data (which patches meet the surface) is another. With
`--device cpu` the same code runs on a CPU, to see that it does.
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
    """Of one encoding."""

    steps_per_second: float
    waits: float
    """A step, in the mean; NaN on a CPU."""
    device_gb: float
    """Most memory of the GPU allocated at once; NaN on a CPU."""
    mae_deg: float


def measure(trainer: Trainer, steps: int) -> Result:
    """Trains, and counts."""
    cuda = trainer.device.startswith("cuda")
    seconds, waits = [], []
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
        waits.append(sum("synchroniz" in str(warning.message) for warning in caught))
    metrics = trainer.pipeline.get_average_eval_image_metrics()
    return Result(
        steps_per_second=1 / statistics.median(seconds[steps // 10 :]),
        waits=statistics.mean(waits) if cuda else float("nan"),
        device_gb=torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan"),
        mae_deg=metrics["normal_mae_deg"],
    )


def main() -> None:
    """Make the scene, train with each encoding, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="figure", help="of pmni synth")
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--width", type=int, default=612)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rays", type=int, default=8192, help="a batch")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here: --device cpu shows that the script runs")
    fields = {
        "grid": PmniFieldConfig(encoding="grid"),
        "hash, PyTorch": PmniFieldConfig(encoding="hash", hash_implementation="torch"),
        "hash, tinycudann": PmniFieldConfig(encoding="hash", hash_implementation="tcnn"),
    }
    console = Console(width=100)
    if not tcnn_usable():
        del fields["hash, tinycudann"]
        console.print("tinycudann: not installed, or no GPU: left out")
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    table = Table(title=f"{arguments.width}x{arguments.height}, {arguments.rays} rays a step, {name}")
    for column in ("encoding", "steps/s", "times", "waits a step", "GB", "normals, deg"):
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
                f"{result.waits:.1f}",
                f"{result.device_gb:.2f}",
                f"{result.mae_deg:.2f}",
            )
    console.print(table)


if __name__ == "__main__":
    main()

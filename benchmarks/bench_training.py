# SPDX-License-Identifier: Apache-2.0
"""Measure training speed on one CPU core, compared with reduced versions of neus-facto on the same scene.

    python benchmarks/bench_training.py [--steps 120] [--stock-steps 8] [--threads 1]

`pmni-calibrated` is trained as by ns-train: sampling of batches, callbacks, losses and Adam. All settings but the number
of steps have their defaults. The schedules (levels, sharpness, learning rates) depend on the fraction of the run, so that a
short run passes through all of them; its first and last quarters are also shown separately. The setup with visual hull
and warm start is not included in the speed, and printed separately.

nerfstudio's neus-facto does not run on a CPU. It is replaced by `neus-facto-small` (pmni_nerfstudio/baselines), which uses
nerfstudio's PyTorch HashEncoding and no LPIPS, in two sizes:

- small: the hash grids of neus-facto (16 levels of 2^19 entries up to 2048, proposals with 5 levels of 2^17) with
  narrower networks (64 instead of 256) and fewer samples per ray (32 + 16 + 16 instead of 256 + 96 + 48). Each reduction
  makes it faster, so that its ratio is a lower bound.
- tiny: also hash grids of 8 levels of 2^15 entries up to 1024, and proposals of 2^15; not a usable method.

Both get the same rays, sampled outside the measured time. The methods take turns, so that other load on the machine
affects all alike. Typically pmni-calibrated processes over thirty times as many rays per second as small, and seven times
as many as tiny (docs/benchmarks.md). The mean includes work that only some steps do, such as refreshing the occupancy
grid; the median does not.
"""

from __future__ import annotations

import argparse
import copy
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads would take the core from the working one

import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.models.neus_facto import NeuSFactoModel
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pmni_nerfstudio.baselines.neus_facto import small_model
from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.pmni_config import pmni_calibrated

WARM_UP = 5  # first steps that are not measured: they set up the allocator, thread pools and Adam's state
STOCK_WARM_UP = 2  # the same for neus-facto


@dataclass(frozen=True)
class HashSize:
    """Sizes of the hash grids of neus-facto."""

    levels: int
    """Number of levels of the field's hash grid."""
    log2_table: int
    """Binary logarithm of the number of entries per level."""
    max_res: int
    """Cells per axis of the finest level."""
    proposal_log2_table: int
    """Binary logarithm of the number of entries per level of the proposal networks."""


STOCK_SIZES = {"small": HashSize(16, 19, 2048, 17), "tiny": HashSize(8, 15, 1024, 15)}


@dataclass
class Timed:
    """Method in training, with the times and losses of its steps."""

    step: Callable[[int], float]
    """Trains one step, and returns its loss."""
    rays: int
    """Rays per step."""
    seconds: List[float] = field(default_factory=list)
    losses: List[float] = field(default_factory=list)

    def run(self, step: int) -> None:
        """Train one step and measure its time."""
        start = time.perf_counter()
        loss = self.step(step)
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss)

    def speed(self, first: int, last: int, average: Callable[[List[float]], float]) -> float:
        """Rays per second, from the average time of the steps from `first` to `last` (exclusive)."""
        return self.rays / average(self.seconds[first:last])


def set_up_ours(data: Path, out: Path, steps: int, device: str = "cpu", **changes: Any) -> Trainer:
    """Trainer of `ns-train pmni-calibrated --data DATA --max-num-iterations STEPS`, before its first step.

    Args:
        data: scene folder.
        out: output folder.
        steps: length of the run.
        device: cpu or cuda.
        changes: changes of the pipeline's config, such as model__x=value.
    """
    config: TrainerConfig = copy.deepcopy(pmni_calibrated.config)
    config.data = config.pipeline.datamanager.data = data  # type: ignore[attr-defined]
    config.output_dir, config.experiment_name, config.timestamp = out, "bench", "run"
    config.vis, config.max_num_iterations = "tensorboard", steps
    config.machine.device_type = device  # type: ignore[assignment]
    for path, value in changes.items():
        part, name = path.split("__")
        assert hasattr(getattr(config.pipeline, part), name), path
        setattr(getattr(config.pipeline, part), name, value)
    trainer: Trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    return trainer


def run_callbacks(callbacks: List[TrainingCallback], step: int, location: TrainingCallbackLocation) -> None:
    """Run callbacks as nerfstudio's trainer does."""
    for callback in callbacks:
        callback.run_callback_at_location(step, location=location)


def ours(trainer: Trainer) -> Timed:
    """`pmni-calibrated`, with steps as in Trainer.train but without logging."""

    def step(number: int) -> float:
        trainer.pipeline.train()
        run_callbacks(trainer.callbacks, number, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        loss = trainer.train_iteration(number)[0]
        run_callbacks(trainer.callbacks, number, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
        return loss.item()

    return Timed(step, trainer.pipeline.datamanager.get_train_rays_per_batch())


def small_neus_facto(views: int, size: HashSize) -> NeuSFactoModel:
    """Model of `neus-facto-small` with hash grids of the given size."""
    config = small_model()
    config.background_color = "white"  # as in the images of the batches
    field, proposals = config.sdf_field, config.proposal_net_args_list
    field.num_levels, field.max_res, field.log2_hashmap_size = size.levels, size.max_res, size.log2_table
    for proposal in proposals:
        proposal["log2_hashmap_size"] = size.proposal_log2_table
    box = SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    model: NeuSFactoModel = config.setup(scene_box=box, num_train_data=views)
    return model.train()


def neus_facto(model: NeuSFactoModel, batches: List[Tuple[RayBundle, Dict[str, Tensor]]]) -> Timed:
    """neus-facto, with its own forward pass, losses, callbacks and learning rates, and Adam."""
    groups = model.get_param_groups()
    optimizer = torch.optim.Adam(
        [{"params": groups["fields"], "lr": 5e-4}, {"params": groups["proposal_networks"], "lr": 1e-2}], eps=1e-15
    )
    callbacks = model.get_training_callbacks(
        TrainingCallbackAttributes(optimizers=None, grad_scaler=None, pipeline=None, trainer=None)
    )

    def step(number: int) -> float:
        rays, batch = batches[number]
        run_callbacks(callbacks, number, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        optimizer.zero_grad()
        outputs = model(rays)
        loss = torch.stack(list(model.get_loss_dict(outputs, batch).values())).sum()
        loss.backward()
        optimizer.step()
        run_callbacks(callbacks, number, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
        return loss.item()

    return Timed(step, len(batches[0][0]))


def stock_batches(trainer: Trainer, count: int, rays: int) -> List[Tuple[RayBundle, Dict[str, Tensor]]]:
    """Batches of the data manager in the format of neus-facto, each a random subset of a batch's rays."""
    batches = []
    for number in range(count):
        bundle, batch = trainer.pipeline.datamanager.next_train(number)
        chosen = torch.randperm(len(bundle))[:rays]
        small = bundle[chosen]
        small.metadata = {"directions_norm": torch.ones(rays, 1)}
        # nerfstudio's surface models expect the mask under the key 'fg_mask'.
        batches.append((small, {"image": batch["image"][chosen], "fg_mask": batch["mask"][chosen]}))
    return batches


def report(console: Console, own: Timed, stock: Dict[str, Timed]) -> None:
    """Print a table; ratios compare all steps of pmni-calibrated with those of each neus-facto."""
    steps, quarter = len(own.seconds), (len(own.seconds) - WARM_UP) // 4
    machine = (
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}, {os.cpu_count()} cores"
    )
    table = Table(title=f"Training on the CPU: {machine}")
    for column in ("method", "rays/step", "steps", "mean rays/s", "ratio", "median rays/s", "ratio", "loss"):
        table.add_column(column, justify="left" if column == "method" else "right")
    rows = [(f"neus-facto, {name}", timed, STOCK_WARM_UP, len(timed.seconds)) for name, timed in stock.items()]
    rows += [
        ("pmni-calibrated", own, WARM_UP, steps),
        ("  first quarter", own, WARM_UP, WARM_UP + quarter),
        ("  last quarter", own, steps - quarter, steps),
    ]
    for name, timed, first, last in rows:
        cells = [name, str(timed.rays), str(last - first)]
        for average in (statistics.mean, statistics.median):
            speed = timed.speed(first, last, average)
            ratio = "" if timed is own else f"{own.speed(WARM_UP, steps, average) / speed:.1f} x"
            cells += [f"{speed:,.0f}", ratio]
        table.add_row(*cells, f"{timed.losses[first]:.3f} to {timed.losses[last - 1]:.3f}")
    console.print(table)


def main() -> None:
    """Train all methods in turns on one scene, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="number of steps of pmni-calibrated")
    parser.add_argument("--stock-steps", type=int, default=8, help="measured steps of each neus-facto")
    parser.add_argument("--stock-rays", type=int, default=512, help="rays per step of neus-facto")
    parser.add_argument("--threads", type=int, default=1, help="number of threads of PyTorch")
    arguments = parser.parse_args()
    if arguments.steps < 2 * WARM_UP or arguments.stock_steps < 1:
        parser.error(f"give --steps of at least {2 * WARM_UP}, and --stock-steps of at least 1")
    torch.manual_seed(0)
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene"
        SynthCommand(out=scene, shape="figure", mesh_resolution=32).main()
        start = time.perf_counter()
        trainer = set_up_ours(scene, Path(folder) / "out", arguments.steps)
        console.print(f"pmni-calibrated: setup with visual hull and warm start in {time.perf_counter() - start:.1f} s")
        torch.set_num_threads(arguments.threads)  # after the setup, which sets the number of threads itself
        turns = STOCK_WARM_UP + arguments.stock_steps
        own = ours(trainer)
        views = len(trainer.pipeline.datamanager.train_dataset)  # type: ignore[arg-type]
        batches = stock_batches(trainer, turns, arguments.stock_rays)
        stock = {name: neus_facto(small_neus_facto(views, size), batches) for name, size in STOCK_SIZES.items()}
        for step in range(arguments.steps):
            own.run(step)
            for stock_step in range(step * turns // arguments.steps, (step + 1) * turns // arguments.steps):
                for timed in stock.values():
                    timed.run(stock_step)
        report(console, own, stock)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Training speed on one core of a CPU, beside a small neus-facto on the same scene, in one process and one run.

    python benchmarks/bench_training.py [--steps 120] [--stock-steps 8] [--threads 1]

Ours is `pmni-calibrated` as `ns-train` runs it: batches drawn, callbacks, losses, Adam. All is the default but the
run's length: its schedules (levels, sharpness, learning rates) go by the fraction of the run, so a short run passes
through all of them, and its first and last quarters are shown apart. Setting up, the visual hull and the warm start
come before the first step and aren't in the times; they are printed.

neus-facto runs on no CPU as nerfstudio ships it: this is `neus-facto-small` (pmni_nerfstudio/baselines), where
nerfstudio's own PyTorch HashEncoding stands in for tinycudann's and no LPIPS is built, with larger hash grids than that
method's own. Two sizes of it are timed, both below nerfstudio's own, which would take seconds for what we do in a few
milliseconds:

- small: the hash grids are nerfstudio's (16 levels of 2^19 entries up to 2048, proposals 5 levels of 2^17); cut are the
  widths of the networks (256 to 64) and the samples along a ray (256 + 96 + 48 to 32 + 16 + 16). Each cut makes it
  faster. This is the peer to quote.
- tiny: 8 levels of 2^15 entries up to 1024 as well, proposals of 2^15: no longer a method anyone would run.

Their batches are the same rays, drawn outside their times. All take turns, so that whatever else the machine does
falls on each. The mean counts what only some steps do (our grid's refresh, any hiccup); the median is of a step.
"""

from __future__ import annotations

import argparse
import copy
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin take the core from the one that works

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

WARM_UP = 5  # of our steps, and STOCK_WARM_UP of the other's: allocator, thread pools, Adam's state
STOCK_WARM_UP = 2


@dataclass(frozen=True)
class HashSize:
    """What sets the sizes of neus-facto apart."""

    levels: int
    """Of the field's hash grid."""
    log2_table: int
    """Entries of each of its levels."""
    max_res: int
    """Cells per axis of its finest level."""
    proposal_log2_table: int
    """Entries of the proposal networks' levels."""


STOCK_SIZES = {"small": HashSize(16, 19, 2048, 17), "tiny": HashSize(8, 15, 1024, 15)}


@dataclass
class Timed:
    """A method being trained: a step that returns its loss, its rays, and what steps took and their losses."""

    step: Callable[[int], float]
    rays: int
    seconds: List[float] = field(default_factory=list)
    losses: List[float] = field(default_factory=list)

    def run(self, step: int) -> None:
        """One step, timed."""
        start = time.perf_counter()
        loss = self.step(step)
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss)

    def speed(self, first: int, last: int, average: Callable[[List[float]], float]) -> float:
        """Rays per second, from the average of the steps first to last (excluded)."""
        return self.rays / average(self.seconds[first:last])


def set_up_ours(data: Path, out: Path, steps: int, device: str = "cpu", **changes: Any) -> Trainer:
    """The trainer of `ns-train pmni-calibrated --data DATA --max-num-iterations STEPS`, before its first step.

    Changes are to the pipeline's configuration, given as model__x=value.
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
    """As the trainer's loop does."""
    for callback in callbacks:
        callback.run_callback_at_location(step, location=location)


def ours(trainer: Trainer) -> Timed:
    """A step as in Trainer.train, without the logging after it."""

    def step(number: int) -> float:
        trainer.pipeline.train()
        run_callbacks(trainer.callbacks, number, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        loss = trainer.train_iteration(number)[0]
        run_callbacks(trainer.callbacks, number, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
        return loss.item()

    return Timed(step, trainer.pipeline.datamanager.get_train_rays_per_batch())


def small_neus_facto(views: int, size: HashSize) -> NeuSFactoModel:
    """`neus-facto-small` with hash grids of this size."""
    config = small_model()
    config.background_color = "white"  # as the pictures of our batches
    field, proposals = config.sdf_field, config.proposal_net_args_list
    field.num_levels, field.max_res, field.log2_hashmap_size = size.levels, size.max_res, size.log2_table
    for proposal in proposals:
        proposal["log2_hashmap_size"] = size.proposal_log2_table
    box = SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    model: NeuSFactoModel = config.setup(scene_box=box, num_train_data=views)
    return model.train()


def neus_facto(model: NeuSFactoModel, batches: List[Tuple[RayBundle, Dict[str, Tensor]]]) -> Timed:
    """Steps of the stock model's own forward pass, losses and callbacks, and Adam with its learning rates."""
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
    """Batches of our data manager, as the stock model wants them: a random choice of a batch's rays."""
    batches = []
    for number in range(count):
        bundle, batch = trainer.pipeline.datamanager.next_train(number)
        chosen = torch.randperm(len(bundle))[:rays]
        small = bundle[chosen]
        small.metadata = {"directions_norm": torch.ones(rays, 1)}
        # 'fg_mask' is nerfstudio's name for the mask in the losses of surface models
        batches.append((small, {"image": batch["image"][chosen], "fg_mask": batch["mask"][chosen]}))
    return batches


def report(console: Console, own: Timed, stock: Dict[str, Timed]) -> None:
    """The table. Ratios are of all of our steps to those of each size of neus-facto."""
    steps, quarter = len(own.seconds), (len(own.seconds) - WARM_UP) // 4
    machine = (
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}, {os.cpu_count()} cores"
    )
    table = Table(title=f"Training on the CPU: {machine}")
    for column in ("method", "rays a step", "steps", "mean rays/s", "ours is", "median rays/s", "ours is", "loss"):
        table.add_column(column, justify="left" if column == "method" else "right")
    rows = [(f"neus-facto, {name}", timed, STOCK_WARM_UP, len(timed.seconds)) for name, timed in stock.items()]
    rows += [
        ("pmni-calibrated", own, WARM_UP, steps),
        ("  its first quarter", own, WARM_UP, WARM_UP + quarter),
        ("  its last quarter", own, steps - quarter, steps),
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
    """Make the scene, train all in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="steps of pmni-calibrated: the length of its run")
    parser.add_argument("--stock-steps", type=int, default=8, help="timed steps of each neus-facto")
    parser.add_argument("--stock-rays", type=int, default=512, help="rays of a step of neus-facto")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads")
    arguments = parser.parse_args()
    if arguments.steps < 2 * WARM_UP or arguments.stock_steps < 1:
        parser.error(f"give at least {2 * WARM_UP} steps, and 1 stock step")
    torch.manual_seed(0)
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene"
        SynthCommand(out=scene, shape="figure", mesh_resolution=32).main()
        start = time.perf_counter()
        trainer = set_up_ours(scene, Path(folder) / "out", arguments.steps)
        console.print(f"pmni-calibrated: set up, with hull and warm start, in {time.perf_counter() - start:.1f} s")
        torch.set_num_threads(arguments.threads)  # after the setup, which settles threads for itself
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

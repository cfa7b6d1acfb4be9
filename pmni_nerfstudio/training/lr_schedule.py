# SPDX-License-Identifier: Apache-2.0
"""Adam and its learning rate over the run, as fractions of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Dict, Literal, Tuple, Type

import torch
from nerfstudio.engine.optimizers import OptimizerConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


@dataclass
class FusedAdamConfig(OptimizerConfig):
    """Adam in PyTorch's fused form: one pass over the parameters, several times faster on a CPU than the loop."""

    _target: Type = torch.optim.Adam
    """Optimizer class."""
    betas: Tuple[float, float] = (0.9, 0.99)
    """Decay of the running means of the gradient and of its square."""
    fused: bool = True
    """Use the fused form."""


Decay = Literal["exponential", "cosine", "third"]


class RunFraction:
    """Factor on the learning rate: a linear warm-up, then a decay to `final` at the schedule's end.

    exponential: goes on falling beyond it. cosine: half a period. third: `final` at once, after a third of the run.

    A callable object, so that PyTorch saves its numbers (Python's own, which load without an allow-list) with the
    checkpoint; the model fills in `max_steps` from the trainer, whatever number of iterations the user asks for.
    """

    decay: Decay = "exponential"
    """Of checkpoints of before there were others."""

    def __init__(self, warmup: float, final: float, decay: Decay) -> None:
        self.warmup = warmup
        self.final = final
        self.decay = decay
        self.max_steps = 0

    def __call__(self, step: int) -> float:
        fraction = step / self.max_steps if self.max_steps else 0.0
        ramp = 1.0 if fraction >= self.warmup else (fraction + 1e-3) / (self.warmup + 1e-3)
        if self.decay == "exponential":
            return ramp * math.exp(math.log(self.final) * fraction)
        if self.decay == "cosine":
            return ramp * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0))))
        return ramp * (1.0 if fraction < 1 / 3 else self.final)


@dataclass
class RunFractionSchedulerConfig(SchedulerConfig):
    """Learning rate as a function of the fraction of the run that is done."""

    _target: Type = field(default_factory=lambda: RunFractionScheduler)
    """Scheduler class."""
    warmup: float = 0.02
    """Fraction of the run over which the rate rises from zero."""
    final: float = 0.05
    """Share of the rate that is left at the end."""
    decay: Decay = "exponential"
    """How it gets there: exponential, cosine, or third: at once after a third of the run."""


class RunFractionScheduler(Scheduler):
    """See `RunFraction`."""

    config: RunFractionSchedulerConfig

    def get_scheduler(self, optimizer: torch.optim.Optimizer, lr_init: float) -> LRScheduler:
        """The scheduler; its steps are counted by the trainer."""
        del lr_init
        return LambdaLR(optimizer, RunFraction(self.config.warmup, self.config.final, self.config.decay))


def set_run_length(schedulers: Dict[str, LRScheduler], max_steps: int) -> None:
    """Tells every `RunFraction` schedule how long the run is."""
    for scheduler in schedulers.values():
        for factor in getattr(scheduler, "lr_lambdas", []):
            if isinstance(factor, RunFraction):
                factor.max_steps = max_steps


def scale_rate(scheduler: LRScheduler, factor: float) -> None:
    """Multiplies a schedule's learning rate, from now on; saved with the scheduler in checkpoints."""
    scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
    for group in scheduler.optimizer.param_groups:
        group["lr"] *= factor

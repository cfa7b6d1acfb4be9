# SPDX-License-Identifier: Apache-2.0
"""Adam, and learning rate schedules in fractions of the run."""

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
    """Adam in PyTorch's fused implementation, which is several times faster on a CPU than the default loop."""

    _target: Type = torch.optim.Adam
    """Optimizer class."""
    betas: Tuple[float, float] = (0.9, 0.99)
    """Decay rates of the running means of the gradient and of its square."""
    fused: bool = True
    """Use the fused implementation."""


Decay = Literal["exponential", "cosine", "third"]


@dataclass
class RunFraction:
    """Learning rate factor as a function of the step: linear warm-up, then a decay to `final` at the schedule's end.

    The decay is exponential (it continues beyond the end), cosine (half a period), or third (`final` after a third of
    the run).

    It is an object rather than a closure, so that PyTorch saves its plain numbers in checkpoints. `max_steps` is set
    when training starts, because it depends on the requested number of iterations.
    """

    warmup: float
    """Fraction of the run over which the factor rises from zero."""
    final: float
    """Factor at the end of the schedule."""
    decay: Decay
    """Shape of the decay."""
    max_steps: int = 0
    """Length of the schedule in steps."""

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
    """Learning rate as a function of the completed fraction of the run."""

    _target: Type = field(default_factory=lambda: RunFractionScheduler)
    """Scheduler class."""
    warmup: float = 0.02
    """Fraction of the run over which the learning rate rises linearly from zero."""
    final: float = 0.05
    """Learning rate at the end of the schedule, as a fraction of the initial learning rate."""
    decay: Decay = "exponential"
    """Shape of the decay: exponential, cosine, or third (a single drop after a third of the run)."""


class RunFractionScheduler(Scheduler):
    """nerfstudio scheduler with the factors of `RunFraction`."""

    config: RunFractionSchedulerConfig

    def get_scheduler(self, optimizer: torch.optim.Optimizer, lr_init: float) -> LRScheduler:
        """PyTorch scheduler of an optimizer, stepped by the trainer."""
        del lr_init
        return LambdaLR(optimizer, RunFraction(self.config.warmup, self.config.final, self.config.decay))


def set_schedule_length(schedulers: Dict[str, LRScheduler], max_steps: int) -> None:
    """Set the length, in steps, of every `RunFraction` schedule."""
    for scheduler in schedulers.values():
        for factor in getattr(scheduler, "lr_lambdas", []):
            if isinstance(factor, RunFraction):
                factor.max_steps = max_steps


def scale_learning_rate(scheduler: LRScheduler, factor: float) -> None:
    """Multiply a schedule's learning rate by a factor, which checkpoints preserve."""
    scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
    for group in scheduler.optimizer.param_groups:
        group["lr"] *= factor

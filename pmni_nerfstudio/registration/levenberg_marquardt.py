# SPDX-License-Identifier: Apache-2.0
"""Damped Gauss-Newton (Levenberg-Marquardt) with real accept and reject; it knows nothing of what it solves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from jaxtyping import Float

State = TypeVar("State")


@dataclass(frozen=True)
class Linearization:
    """A problem's cost about a state: cost + gradient . delta + delta . hessian . delta / 2 to second order."""

    hessian: Float[np.ndarray, "p p"]
    """Gauss-Newton's approximation, symmetric, positive semi-definite."""
    gradient: Float[np.ndarray, " p"]
    cost: float


class Problem(Protocol[State]):
    """What the solver needs to know of a least-squares problem on a manifold."""

    def linearize(self, state: State) -> Linearization:
        """Cost, gradient and Gauss-Newton Hessian at a state, by its local coordinates."""
        ...

    def retract(self, state: State, delta: Float[np.ndarray, " p"]) -> State:
        """The state moved by local coordinates."""
        ...


@dataclass(frozen=True)
class Criteria:
    """When a step is taken and when it is enough."""

    max_iterations: int = 30
    initial_damping: float = 1e-2
    """Added to the Hessian's diagonal, relative to it."""
    damping_floor: float = 1e-2
    """Added to the Hessian's diagonal as it is: keeps freedoms that nothing holds (a gauge) where they are."""
    relative_decrease: float = 2e-4
    """An accepted step that lowers the cost by less than this share of it is the last."""


@dataclass(frozen=True)
class Solution(Generic[State]):
    """Where the solver ended."""

    state: State
    cost: float
    initial_cost: float
    iterations: int
    accepted: int
    converged: bool
    """False if it ran out of iterations."""


_LARGEST_DAMPING = 1e4


def solve(
    problem: Problem[State],
    state: State,
    criteria: Criteria = Criteria(),
    on_step: Callable[[State, float], None] | None = None,
) -> Solution[State]:
    """Minimise a robust least-squares cost (Levenberg, 1944; Marquardt, 1963).

    A step is taken only if the cost at its end is lower; then the damping falls, else it grows and the step is
    tried again from the same linearization.

    Args:
        problem: that linearizes itself.
        state: to start from.
        criteria: damping and when to stop.
        on_step: called with every accepted state and its cost.
    """
    current = problem.linearize(state)
    initial_cost = current.cost
    damping, accepted = criteria.initial_damping, 0
    iteration = 0
    while iteration < criteria.max_iterations:
        iteration += 1
        diagonal = np.diag(current.hessian)
        damped = current.hessian + np.diag(damping * diagonal + criteria.damping_floor)
        candidate_state = problem.retract(state, np.linalg.solve(damped, -current.gradient))
        candidate = problem.linearize(candidate_state)
        if candidate.cost < current.cost:
            decrease = (current.cost - candidate.cost) / current.cost
            state, current = candidate_state, candidate
            accepted += 1
            damping = max(damping / 4, 1e-8)
            if on_step is not None:
                on_step(state, current.cost)
            if decrease < criteria.relative_decrease:
                return Solution(state, current.cost, initial_cost, iteration, accepted, True)
        else:
            damping *= 5
            if damping > _LARGEST_DAMPING:
                return Solution(state, current.cost, initial_cost, iteration, accepted, True)
    return Solution(state, current.cost, initial_cost, iteration, accepted, False)

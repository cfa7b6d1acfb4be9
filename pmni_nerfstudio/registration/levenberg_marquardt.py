# SPDX-License-Identifier: Apache-2.0
"""Levenberg-Marquardt on manifolds. A problem linearizes itself; the solver knows nothing else of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from jaxtyping import Float

State = TypeVar("State")


@dataclass(frozen=True)
class Linearization:
    """Second-order model of a cost about a state: cost + gradient . delta + delta . hessian . delta / 2."""

    hessian: Float[np.ndarray, "p p"]
    """Gauss-Newton approximation; symmetric and positive semi-definite."""
    gradient: Float[np.ndarray, " p"]
    cost: float


class Problem(Protocol[State]):
    """Least-squares problem on a manifold."""

    def linearize(self, state: State) -> Linearization:
        """Cost, gradient and Gauss-Newton Hessian at a state, in its local coordinates."""
        ...

    def retract(self, state: State, delta: Float[np.ndarray, " p"]) -> State:
        """The state moved by local coordinates."""
        ...


@dataclass(frozen=True)
class Criteria:
    """Damping and convergence criteria."""

    max_iterations: int = 30
    initial_damping: float = 1e-2
    """Damping relative to the Hessian's diagonal (Marquardt); adapted from step to step."""
    damping_floor: float = 1e-2
    """Constant added to the Hessian's diagonal (Levenberg); keeps unobservable directions (a gauge) in place."""
    relative_decrease: float = 2e-4
    """Converged when an accepted step lowers the cost by less than this fraction."""


@dataclass(frozen=True)
class Solution(Generic[State]):
    """Result of `solve`."""

    state: State
    cost: float
    converged: bool
    """False if the iterations ran out first."""


_MAX_DAMPING = 1e4


def solve(
    problem: Problem[State],
    state: State,
    criteria: Criteria = Criteria(),
    on_step: Callable[[State, float], None] | None = None,
) -> Solution[State]:
    """Minimize a (robust) least-squares cost (Levenberg, 1944; Marquardt, 1963).

    A step is accepted only if it lowers the actual cost; the damping then decreases. After a rejected step the damping
    increases and the step is computed again from the same linearization.

    Args:
        problem: the problem to solve.
        state: initial state.
        criteria: damping and convergence criteria.
        on_step: called with every accepted state and its cost.
    """
    current = problem.linearize(state)
    damping = criteria.initial_damping
    for _ in range(criteria.max_iterations):
        diagonal = np.diag(current.hessian)
        damped = current.hessian + np.diag(damping * diagonal + criteria.damping_floor)
        candidate_state = problem.retract(state, np.linalg.solve(damped, -current.gradient))
        candidate = problem.linearize(candidate_state)
        if candidate.cost < current.cost:
            decrease = (current.cost - candidate.cost) / current.cost
            state, current = candidate_state, candidate
            damping = max(damping / 4, 1e-8)
            if on_step is not None:
                on_step(state, current.cost)
            if decrease < criteria.relative_decrease:
                return Solution(state, current.cost, converged=True)
        else:
            damping *= 5
            if damping > _MAX_DAMPING:
                return Solution(state, current.cost, converged=True)
    return Solution(state, current.cost, converged=False)

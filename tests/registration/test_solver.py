# SPDX-License-Identifier: Apache-2.0
"""Levenberg-Marquardt on problems with known solutions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pmni_nerfstudio.registration.levenberg_marquardt import Criteria, Linearization, solve

EXACT = Criteria(max_iterations=200, initial_damping=1e-3, damping_floor=1e-12, relative_decrease=0.0)


class Residuals:
    """Least-squares problem of residuals with their Jacobian, optionally under a Geman-McClure kernel."""

    def __init__(self, evaluate: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], kernel: float | None = None):
        self.evaluate, self.kernel = evaluate, kernel
        self.evaluations = 0

    def linearize(self, state: np.ndarray) -> Linearization:
        self.evaluations += 1
        r, J = self.evaluate(state)
        if self.kernel is None:
            return Linearization(2 * J.T @ J, 2 * J.T @ r, float(r @ r))
        c = self.kernel**2
        w = c / (r**2 + c) ** 2
        return Linearization(2 * (J.T * w) @ J, 2 * J.T @ (w * r), float((r**2 / (r**2 + c)).sum()))

    def retract(self, state: np.ndarray, delta: np.ndarray) -> np.ndarray:
        return state + delta


def test_linear_least_squares():
    rng = np.random.default_rng(0)
    A, b = rng.standard_normal((9, 4)), rng.standard_normal(9)
    solution = solve(Residuals(lambda x: (A @ x - b, A)), np.zeros(4), EXACT)
    np.testing.assert_allclose(solution.state, np.linalg.lstsq(A, b, rcond=None)[0], atol=1e-8)
    assert solution.cost == pytest.approx(((A @ solution.state - b) ** 2).sum())


def test_a_curved_valley_goes_down_at_every_step():
    def rosenbrock(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]]), np.array([[-20 * x[0], 10.0], [-1.0, 0.0]])

    costs = []
    start = np.array([-1.2, 1.0])
    problem = Residuals(rosenbrock)
    solution = solve(problem, start, EXACT, lambda _, cost: costs.append(cost))
    np.testing.assert_allclose(solution.state, [1, 1], atol=1e-6)
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == solution.cost
    assert 1 + len(costs) < problem.evaluations  # some steps were rejected


def test_steps_that_raise_the_cost_are_rejected():
    # Gauss-Newton's full step of atan from 3 overshoots to -9.5, and diverges from there.
    problem = Residuals(lambda x: (np.arctan(x), np.diag(1 / (1 + x**2))))
    costs = []
    solution = solve(problem, np.array([3.0]), EXACT, lambda _, cost: costs.append(cost))
    assert abs(solution.state[0]) < 1e-6
    assert 1 + len(costs) < problem.evaluations


def test_a_step_to_an_undefined_cost_is_rejected():
    def logarithm(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(invalid="ignore"):
            return np.log(x), np.diag(1 / x)

    solution = solve(Residuals(logarithm), np.array([5.0]), EXACT)  # the first full step would go to -3.05
    assert solution.state[0] == pytest.approx(1, abs=1e-6)


def test_outliers_count_little_under_a_robust_kernel():
    values = np.array([0.9, 1.0, 1.1, 1.0, 30.0, -20.0])
    mean = solve(Residuals(lambda x: (x - values, np.ones((6, 1)))), np.zeros(1), EXACT)
    robust = solve(Residuals(lambda x: (x - values, np.ones((6, 1))), kernel=0.5), np.zeros(1), EXACT)
    assert mean.state[0] == pytest.approx(values.mean())
    assert robust.state[0] == pytest.approx(1, abs=0.01)


def test_unobservable_directions_stay():
    # Only differences are observed: the mean is a gauge.
    J = np.array([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0], [-1.0, 0.0, 1.0]])
    start = np.array([5.0, 7.0, 6.0])
    solution = solve(Residuals(lambda x: (J @ x - [1, 2, 3], J)), start, Criteria(100, relative_decrease=0.0))
    assert solution.cost < 1e-10
    np.testing.assert_allclose(solution.state, start.mean() + np.array([-4 / 3, -1 / 3, 5 / 3]), atol=1e-4)


def test_a_constant_cost_is_not_optimized():
    costs = []
    problem = Residuals(lambda x: (np.ones(2), np.zeros((2, 3))))
    solution = solve(problem, np.arange(3.0), on_step=lambda _, cost: costs.append(cost))
    np.testing.assert_array_equal(solution.state, np.arange(3.0))
    assert not costs
    assert solution.converged


def test_running_out_of_iterations_is_reported():
    def slow(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x**3, np.diag(3 * x**2)

    problem, costs = Residuals(slow), []
    short = solve(problem, np.array([4.0]), Criteria(max_iterations=3))
    assert (problem.evaluations, short.converged) == (1 + 3, False)
    problem = Residuals(slow)
    criteria = Criteria(max_iterations=500, relative_decrease=0.99)
    assert solve(problem, np.array([4.0]), criteria, lambda _, cost: costs.append(cost)).converged
    assert problem.evaluations == 1 + len(costs)

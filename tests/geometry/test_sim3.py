# SPDX-License-Identifier: Apache-2.0
"""Batches of similarities, and the grid of rotations."""

from __future__ import annotations

import numpy as np
from helpers.pairwise import random_similarities
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.sim3 import Sim3, angles_deg, rotation_grid


def test_similarities_compose_and_invert():
    rng = np.random.default_rng(0)
    a, b = random_similarities(4, 1.0, rng), random_similarities(4, 1.0, rng)
    x = rng.standard_normal((4, 3))

    def apply(T: Sim3, points: np.ndarray) -> np.ndarray:
        return T.s[:, None] * np.einsum("nij,nj->ni", T.R, points) + T.t

    np.testing.assert_allclose(apply(a.compose(b), x), apply(a, apply(b, x)), atol=1e-12)
    np.testing.assert_allclose(apply(a.inverse(), apply(a, x)), x, atol=1e-12)


def test_adjoint_takes_twists_of_the_domain_to_the_range():
    rng = np.random.default_rng(1)
    T, twist = random_similarities(3, 1.0, rng), 1e-6 * rng.standard_normal((3, 7))
    identity = Sim3(np.tile(np.eye(3), (3, 1, 1)), np.zeros((3, 3)), np.ones(3))
    moved_first = T.retract(twist)
    moved_after = identity.retract(np.einsum("nab,nb->na", T.adjoint(), twist)).compose(T)
    for one, other in zip((moved_first.R, moved_first.t, moved_first.s), (moved_after.R, moved_after.t, moved_after.s)):
        np.testing.assert_allclose(one, other, atol=1e-10)
    assert np.abs(moved_first.t - T.t).max() > 1e-7


def test_rotation_grid_leaves_no_gaps():
    grid = rotation_grid(1000)
    np.testing.assert_allclose(grid @ np.swapaxes(grid, 1, 2), np.tile(np.eye(3), (1000, 1, 1)), atol=1e-12)
    anywhere = Rotation.random(200, random_state=0).as_matrix()
    nearest = [angles_deg(grid, np.broadcast_to(r, grid.shape)).min() for r in anywhere]
    assert max(nearest) < 25

# SPDX-License-Identifier: Apache-2.0
"""Learning rates over a run, and when a run has converged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.camera_rings import ring_c2w
from pmni_nerfstudio.geometry.transforms import nerfstudio_from_opencv
from pmni_nerfstudio.model.grid_levels import fitting_steps
from pmni_nerfstudio.model.marching import SurfaceGrid
from pmni_nerfstudio.training.convergence import PIXELS, Change, Convergence, pixels_of
from pmni_nerfstudio.training.lr_schedule import RunFraction

RADIUS, DISTANCE, FOCAL = 0.6, 8.0, 160.0


def of_length(steps: int, *how: Any) -> RunFraction:
    factor = RunFraction(*how)
    factor.max_steps = steps
    return factor


def test_exponential_rates_go_on_falling_after_the_schedule():
    factor = of_length(100, 0.0, 0.05, "exponential")
    assert factor(0) == 1.0 and factor(100) == pytest.approx(0.05) and factor(200) == pytest.approx(0.05**2)
    assert factor(50) == pytest.approx(0.05**0.5)


def test_published_rates():
    """PMNI's: warm-up over 500 of 30,000 steps, half a cosine to 5%; poses at half the rate after a third."""
    factor = of_length(30_000, 500 / 30_000, 0.05, "cosine")
    assert factor(0) < 0.07 and factor(250) == pytest.approx(0.5, abs=0.05)
    assert factor(15_000) == pytest.approx(0.525) and factor(30_000) == pytest.approx(0.05)
    assert factor(40_000) == pytest.approx(0.05)
    poses = of_length(30_000, 0.0, 0.5, "third")
    assert poses(0) == poses(9_999) == 1.0 and poses(10_000) == poses(29_999) == 0.5


def test_larger_maps_take_more_steps():
    assert fitting_steps(40 * 48) == fitting_steps(128 * 153) < fitting_steps(256 * 306) < fitting_steps(512 * 612)


def sphere_at(centre: torch.Tensor) -> Any:
    return SimpleNamespace(
        active_voxel=0.02,
        sdf=lambda x: (x - centre).norm(dim=-1) - RADIUS,
        numerical_gradient=lambda x, delta: torch.nn.functional.normalize(x - centre, dim=-1),
    )


def sphere_views() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks, K and poses of six views of a ball about the origin."""
    K = np.tile(np.array([[FOCAL, 0, 23.5], [0, FOCAL, 19.5], [0, 0, 1]]), (6, 1, 1))
    y, x = np.mgrid[:40, :48]
    # The outline's rays touch the ball; a pixel less, so that all of the mask's rays hit it.
    reach = FOCAL * RADIUS / np.sqrt(DISTANCE**2 - RADIUS**2) - 1.0
    mask = np.hypot(x - 23.5, y - 19.5) < reach
    return np.repeat(mask[None], 6, axis=0), K, ring_c2w(6, DISTANCE)


def test_convergence_measures_the_change():
    masks, K, c2w = sphere_views()
    convergence = Convergence(masks, K)
    grid = SurfaceGrid(64, torch.ones(5, 5, 5))
    still = sphere_at(torch.zeros(3))
    grid.refresh(still.sdf, everywhere=True)
    pose = nerfstudio_from_opencv(c2w)
    assert convergence.check(cast(Any, still), grid, pose) is None
    same = convergence.check(cast(Any, still), grid, pose)
    assert same is not None and same.normals_deg == 0 and same.poses_deg == 0 and same.within(1e-9, 1e-9)

    # A ball that is turned is the same ball; what each pixel sees turns with the cameras.
    turn = Rotation.from_rotvec(np.deg2rad(0.5) * np.array([0.0, 1.0, 0.0])).as_matrix()
    turned = c2w.copy()
    turned[:, :3] = turn @ c2w[:, :3]
    change = convergence.check(cast(Any, still), grid, nerfstudio_from_opencv(turned))
    assert change is not None and change.poses_deg == pytest.approx(0.5, rel=1e-3)
    # A unit normal n moves by the angle times its distance to the axis: for a front half, .7 to .9 of it in the mean.
    assert 0.3 < change.normals_deg < 0.5
    assert not change.within(0.2, 1.0) and not change.within(1.0, 0.2) and change.within(1.0, 1.0)

    # The surface moves, and the poses don't: normals at the same pixels turn by about shift / radius.
    moved = sphere_at(torch.tensor([0.0, 0.01, 0.0]))
    grid.refresh(moved.sdf, everywhere=True)
    change = convergence.check(cast(Any, moved), grid, nerfstudio_from_opencv(turned))
    assert change is not None and change.poses_deg == 0
    assert 0.5 < change.normals_deg / np.rad2deg(0.01 / RADIUS) < 2.0


def test_pixels_come_from_every_mask():
    masks, _, _ = sphere_views()
    masks = masks.copy()
    masks[2, :20] = False
    view, y, x = pixels_of(masks, PIXELS, np.random.default_rng(0))
    assert masks[view, y, x].all() and set(np.bincount(view)) == {PIXELS // 6}


def test_a_change_is_told_in_words():
    assert str(Change(0.123, 0.0004)) == "normals turn by 0.12 deg, poses by 0.0004 deg from check to check"

# SPDX-License-Identifier: Apache-2.0
"""Learning rate schedules, and the convergence criterion."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.camera_rings import ring_c2w
from pmni_nerfstudio.geometry.transforms import nerfstudio_from_opencv
from pmni_nerfstudio.model.grid_levels import matching_schedule_steps
from pmni_nerfstudio.model.marching import SurfaceGrid
from pmni_nerfstudio.training.convergence import NUM_PIXELS, Change, ConvergenceMonitor, draw_mask_pixels
from pmni_nerfstudio.training.lr_schedule import RunFraction

RADIUS, DISTANCE, FOCAL = 0.6, 8.0, 160.0


def factor_of_length(steps: int, *how: Any) -> RunFraction:
    factor = RunFraction(*how)
    factor.max_steps = steps
    return factor


def test_exponential_decay_continues_after_the_schedule():
    factor = factor_of_length(100, 0.0, 0.05, "exponential")
    assert factor(0) == 1.0 and factor(100) == pytest.approx(0.05) and factor(200) == pytest.approx(0.05**2)
    assert factor(50) == pytest.approx(0.05**0.5)


def test_published_learning_rates():
    """PMNI's rates: warm-up over 500 of 30,000 steps, half a cosine to 5%; half the rate for poses after a third."""
    factor = factor_of_length(30_000, 500 / 30_000, 0.05, "cosine")
    assert factor(0) < 0.07 and factor(250) == pytest.approx(0.5, abs=0.05)
    assert factor(15_000) == pytest.approx(0.525) and factor(30_000) == pytest.approx(0.05)
    assert factor(40_000) == pytest.approx(0.05)
    poses = factor_of_length(30_000, 0.0, 0.5, "third")
    assert poses(0) == poses(9_999) == 1.0 and poses(10_000) == poses(29_999) == 0.5


def test_larger_maps_take_more_steps():
    assert (
        matching_schedule_steps(40 * 48)
        == matching_schedule_steps(128 * 153)
        < matching_schedule_steps(256 * 306)
        < matching_schedule_steps(512 * 612)
    )


def sphere_at(center: torch.Tensor) -> Any:
    return SimpleNamespace(
        active_voxel=0.02,
        sdf=lambda x: (x - center).norm(dim=-1) - RADIUS,
        numerical_gradient=lambda x, delta: torch.nn.functional.normalize(x - center, dim=-1),
    )


def sphere_views() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks, K and camera-to-world poses of six views of a ball at the origin."""
    K = np.tile(np.array([[FOCAL, 0, 23.5], [0, FOCAL, 19.5], [0, 0, 1]]), (6, 1, 1))
    y, x = np.mgrid[:40, :48]
    # A pixel less than the silhouette's radius, so that all mask rays hit the ball.
    reach = FOCAL * RADIUS / np.sqrt(DISTANCE**2 - RADIUS**2) - 1.0
    mask = np.hypot(x - 23.5, y - 19.5) < reach
    return np.repeat(mask[None], 6, axis=0), K, ring_c2w(6, DISTANCE)


def test_convergence_measures_the_change():
    masks, K, c2w = sphere_views()
    convergence = ConvergenceMonitor(masks, K)
    grid = SurfaceGrid(64, torch.ones(5, 5, 5))
    still = sphere_at(torch.zeros(3))
    grid.refresh(still.sdf, everywhere=True)
    pose = nerfstudio_from_opencv(c2w)
    assert convergence.check(cast(Any, still), grid, pose) is None
    same = convergence.check(cast(Any, still), grid, pose)
    assert same is not None and same.normals_deg == 0 and same.poses_deg == 0 and same.within(1e-9, 1e-9)

    # The ball is rotationally symmetric, so that the normal at each pixel rotates with the cameras.
    rotation = Rotation.from_rotvec(np.deg2rad(0.5) * np.array([0.0, 1.0, 0.0])).as_matrix()
    turned = c2w.copy()
    turned[:, :3] = rotation @ c2w[:, :3]
    change = convergence.check(cast(Any, still), grid, nerfstudio_from_opencv(turned))
    assert change is not None and change.poses_deg == pytest.approx(0.5, rel=1e-3)
    # A unit normal moves by the angle times its distance from the axis: 0.7 to 0.9 on average over the front half.
    assert 0.3 < change.normals_deg < 0.5
    assert not change.within(0.2, 1.0) and not change.within(1.0, 0.2) and change.within(1.0, 1.0)

    # The surface moves but not the poses: normals at the same pixels rotate by about shift / radius.
    moved = sphere_at(torch.tensor([0.0, 0.01, 0.0]))
    grid.refresh(moved.sdf, everywhere=True)
    change = convergence.check(cast(Any, moved), grid, nerfstudio_from_opencv(turned))
    assert change is not None and change.poses_deg == 0
    assert 0.5 < change.normals_deg / np.rad2deg(0.01 / RADIUS) < 2.0


def test_pixels_are_drawn_from_every_mask():
    masks, _, _ = sphere_views()
    masks = masks.copy()
    masks[2, :20] = False
    pixels = draw_mask_pixels(masks, NUM_PIXELS, np.random.default_rng(0))
    assert pixels.shape == (6, NUM_PIXELS // 6, 2)
    assert all(mask[y, x].all() for mask, (x, y) in zip(masks, np.moveaxis(pixels, -1, 1)))


def test_change_is_formatted_for_the_log():
    assert str(Change(0.123, 0.0004)) == "normals change by 0.12 deg and poses by 0.0004 deg between checks"

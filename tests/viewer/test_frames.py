# SPDX-License-Identifier: Apache-2.0
"""Frames of the live page: what its menu of outputs shows, and how much of the time somebody who moves the camera gets."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import make_config, set_up
from nerfstudio.utils import colormaps

from pmni_nerfstudio.training.lock import MAX_MOVING_DEBT_SECONDS, MOVING_SHARE, REST_SECONDS, TrainingLock
from pmni_nerfstudio.viewer.frames import DEPTH, ERROR, LEGENDS, NORMALS, legend_bar, page_outputs


@pytest.fixture
def outputs(sphere_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Outputs that the viewer renders for the visual hull of the sphere."""
    trainer = set_up(make_config("pmni-calibrated", sphere_folder, tmp_path, 2))
    model = trainer.pipeline.model
    model.eval()
    model.set_fraction(1.0)
    return model.get_outputs_for_camera(trainer.pipeline.datamanager.train_dataset.cameras[:1])


def test_the_background_has_no_normals_and_depth_is_scaled_on_the_object(outputs: dict[str, Any]):
    surface = outputs["accumulation"][..., 0] > 0.5
    assert 0 < surface.sum() < surface.numel()
    assert bool((outputs["normals"][~surface] == 0.5).all())  # rays that pass the surface within a pixel had some
    assert bool((outputs["normals"][surface] != 0.5).any(dim=-1).all())
    outputs["gl_z_buf_depth"] = outputs["depth"]
    images = page_outputs(outputs)
    assert list(images.keys()) == list(LEGENDS) and "gl_z_buf_depth" in images
    assert all(images[name].shape == (*surface.shape, 3) for name in LEGENDS)
    assert bool((images[DEPTH][~surface] == 0).all())
    depth = outputs["depth"][..., 0].masked_fill(~surface, torch.nan).numpy()
    ends = [np.unravel_index(find(depth), depth.shape) for find in (np.nanargmin, np.nanargmax)]
    scale = colormaps.apply_colormap(torch.tensor([[0.0], [1.0]]))
    for place, color in zip(ends, scale):
        torch.testing.assert_close(images[DEPTH][place].double(), color.double(), atol=0.02, rtol=0)


def test_outputs_with_a_scale_have_a_bar_and_angles_are_in_degrees():
    bar = legend_bar(ERROR)
    assert bar is not None and bar.shape[2] == 3 and np.ptp(bar.astype(int), axis=1).max() > 100
    assert legend_bar(NORMALS) is None
    assert LEGENDS[ERROR].startswith("0 to 30 deg and more")


class Clock:
    """Clock that the test advances."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def hold(lock: TrainingLock, clock: Clock, seconds: float) -> None:
    """Hold the lock in another thread for some seconds of the clock."""

    def run() -> None:
        with lock:
            clock.now += seconds

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def share_of_the_page(lock: TrainingLock, clock: Clock, frame: float, moving: bool) -> float:
    """Fraction of 200 seconds that the page's frames get of the time."""
    begun, held = clock.now, 0.0
    while clock.now < begun + 200:
        if moving:
            lock.moved()
        if lock.has_credit():
            hold(lock, clock, frame)
            held += frame
        else:
            clock.now += 0.02  # a training step
    return held / (clock.now - begun)


def test_somebody_who_moves_the_camera_gets_a_fifth_of_the_time_and_a_first_frame_at_once():
    clock = Clock()
    lock = TrainingLock(lambda: True, clock)
    lock.open()
    hold(lock, clock, 5.0)
    assert not lock.has_credit()
    lock.moved()
    assert lock.has_credit()
    assert share_of_the_page(lock, clock, 0.1, moving=True) == pytest.approx(MOVING_SHARE, abs=0.02)
    hold(lock, clock, 3.0)  # a frame that took unexpectedly long
    clock.now += MAX_MOVING_DEBT_SECONDS / MOVING_SHARE + 0.01
    lock.moved()
    assert lock.has_credit()
    clock.now += 2 * REST_SECONDS
    assert share_of_the_page(lock, clock, 0.1, moving=False) == pytest.approx(0.05, abs=0.01)

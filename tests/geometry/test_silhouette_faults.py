# SPDX-License-Identifier: Apache-2.0
"""Pieces of single masks that are missing or too many, and close-ups, by the other silhouettes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.scenes import fitting_intrinsics, look_at

from pmni_nerfstudio.geometry.silhouette_consistency import measure_consistency
from pmni_nerfstudio.geometry.silhouette_faults import find_mask_faults
from pmni_nerfstudio.synth.render import render
from pmni_nerfstudio.synth.shapes import Shape

SIZE = (96, 80)
VIEWS = 12


def ball_and_plate(p: torch.Tensor) -> torch.Tensor:
    """A flat ellipsoid, with a ball far out on the x axis that a rod holds."""
    plate = ((p / p.new_tensor([0.45, 0.7, 0.25])).norm(dim=-1) - 1) * 0.25
    ball = (p - p.new_tensor([0.75, 0.0, 0.0])).norm(dim=-1) - 0.12
    rod = torch.maximum(p[..., 1:].norm(dim=-1) - 0.05, (p[..., 0] - 0.4).abs() - 0.4)
    return torch.minimum(torch.minimum(plate, ball), rod)


@pytest.fixture(scope="module")
def ring() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks, intrinsics and poses of views on a ring."""
    azimuth = 2 * np.pi * (np.arange(VIEWS) + 0.3) / VIEWS
    c2w = np.array([look_at(np.array([7 * np.cos(a), 7 * np.sin(a), 3.0])) for a in azimuth])
    K = fitting_intrinsics(*SIZE, 7.6)
    return render(Shape(ball_and_plate, 1.5), K, c2w, *SIZE)[0], np.stack([K] * VIEWS), c2w


def disk(mask: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Pixels within a radius of the mask's outermost pixel in a direction."""
    y, x = np.nonzero(mask)
    last = int((x * np.cos(angle) + y * np.sin(angle)).argmax())
    rows, columns = np.indices(mask.shape)
    return (rows - y[last]) ** 2 + (columns - x[last]) ** 2 < radius**2


def test_sound_masks_have_no_faults_even_with_contours_off_by_a_pixel(
    ring: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    masks, K, c2w = ring
    assert find_mask_faults(list(masks), K, c2w) == []
    rng = np.random.default_rng(0)
    moved = [np.roll(mask, rng.integers(-1, 2, size=2), axis=(0, 1)) for mask in masks]
    assert find_mask_faults(moved, K, c2w) == []


@pytest.mark.parametrize("view", [1, 8])
@pytest.mark.parametrize("is_too_large", [True, False])
def test_the_view_with_a_wrong_piece_is_named(
    ring: tuple[np.ndarray, np.ndarray, np.ndarray], view: int, is_too_large: bool
) -> None:
    masks, K, c2w = ring
    piece = disk(masks[view], 6.0 if is_too_large else 9.0, 1.4)
    wrong = list(masks)
    wrong[view] = masks[view] | piece if is_too_large else masks[view] & ~piece
    share = abs(int(wrong[view].sum()) - int(masks[view].sum())) / masks[view].sum()
    assert 0.01 < share < 0.16
    (fault,) = find_mask_faults(wrong, K, c2w)
    assert (fault.view, fault.is_too_large) == (view, is_too_large)
    assert 0.15 * share < fault.share < 1.3 * share


def test_a_close_up_of_a_part_far_from_the_middle_is_consistent(
    ring: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    masks, K, c2w = ring
    pose = look_at(np.array([2.5, 4.5, 0.3]), np.array([0.75, 0.0, 0.0]))
    near = fitting_intrinsics(*SIZE, 7.6)
    near[[0, 1], [0, 1]] *= 5
    close = render(Shape(ball_and_plate, 1.5), near, pose[None], *SIZE)[0][0]
    close = close[20:60, 28:68]  # little more than the ball
    near[:2, 2] -= 28, 20
    possible = close.copy()
    possible[[0, -1]] = possible[:, [0, -1]] = True
    all_masks = [*masks, close]
    found = measure_consistency(
        all_masks, np.concatenate([K, near[None]]), np.concatenate([c2w, pose[None]]), [*masks, possible]
    )
    assert found[-1].score > 0.99

# SPDX-License-Identifier: Apache-2.0
"""Fusion of normals over time: noise averages out where a surface stands still, and motion leaves no trace."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.normals import angular_error_deg
from pmni_nerfstudio.sequences.fusion import fuse_over_time

FRAMES, SIZE = 12, 48


def half_ball() -> tuple[np.ndarray, np.ndarray]:
    """Normals of a ball that fills most of a map, and its mask."""
    y, x = np.meshgrid(*(np.linspace(-1.1, 1.1, SIZE),) * 2, indexing="ij")
    mask = x**2 + y**2 < 0.9
    z = -np.sqrt(np.where(mask, 1 - x**2 - y**2, 0))
    return np.where(mask[..., None], np.stack([x, y, z], axis=-1), 0), mask


def noisy(normals: np.ndarray, mask: np.ndarray, noise_deg: float = 5.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    rotation = Rotation.from_rotvec(rng.normal(0, np.deg2rad(noise_deg) / np.sqrt(2), (mask.sum(), 3)))
    out = np.zeros_like(normals)
    out[mask] = rotation.apply(normals[mask])
    return out


def static() -> tuple[np.ndarray, np.ndarray]:
    normals, mask = half_ball()
    return np.tile(normals, (FRAMES, 1, 1, 1)), np.tile(mask, (FRAMES, 1, 1))


def error_deg(fused: np.ndarray, truth: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean error of each frame."""
    return np.array([angular_error_deg(a[m], b[m]).mean() for a, b, m in zip(fused, truth, where)])


def test_noise_averages_out_where_nothing_moves():
    truth, mask = static()
    maps = noisy(truth, mask)
    fused = fuse_over_time(maps, mask)
    before, after = error_deg(maps, truth, mask), error_deg(fused, truth, mask)
    assert before.mean() > 4.3
    assert after.max() < 0.5 * before.mean() and after[4:8].max() < 0.4 * before.mean()
    assert np.abs(np.linalg.norm(fused[mask], axis=-1) - 1).max() < 1e-5 and not fused[~mask].any()


def test_a_moving_part_keeps_its_normals():
    """The right half turns by 20 degrees from frame to frame, as a limb does that passes by."""
    truth, mask = static()
    right = mask & (np.arange(SIZE) >= SIZE // 2)
    for frame in range(FRAMES):
        turn = Rotation.from_euler("z", 20 * frame, degrees=True)
        truth[frame][right[frame]] = turn.apply(truth[frame][right[frame]])
    core = right & (np.linalg.norm(truth[..., :2], axis=-1) > 0.5)  # near the center the turn changes no normal
    core &= np.arange(SIZE) >= SIZE // 2 + 6
    maps = noisy(truth, mask)
    before, after = error_deg(maps, truth, core), error_deg(fuse_over_time(maps, mask), truth, core)
    assert (after < 1.05 * before).all()
    exact = fuse_over_time(truth, mask)
    assert error_deg(exact, truth, core).max() < 0.5


def test_slow_motion_has_no_lag():
    """All normals turn by one degree from frame to frame: a mean over time would lag by several at both ends."""
    normals, mask = half_ball()
    turns = [Rotation.from_euler("x", frame, degrees=True) for frame in range(FRAMES)]
    truth = np.stack(
        [np.where(mask[..., None], t.apply(normals.reshape(-1, 3)).reshape(normals.shape), 0) for t in turns]
    )
    masks = np.tile(mask, (FRAMES, 1, 1))
    fused = fuse_over_time(noisy(truth, masks), masks)
    for frame in (0, FRAMES - 1):
        lag = np.cross(truth[frame][mask], fused[frame][mask]).mean(axis=0)
        assert np.rad2deg(np.linalg.norm(lag)) < 0.8


def test_holes_neither_contribute_nor_get_normals():
    truth, mask = static()
    valid = mask.copy()
    valid[3, 20:28, 20:28] = False
    maps = np.where(valid[..., None], truth, 0)
    fused = fuse_over_time(maps, valid)
    assert not fused[3, 20:28, 20:28].any()
    assert error_deg(fused, truth, valid).max() < 0.1


def test_single_frames_of_a_range_equal_those_of_all():
    truth, mask = static()
    maps = noisy(truth, mask)
    assert np.array_equal(fuse_over_time(maps, mask, [5])[0], fuse_over_time(maps, mask)[5])

# SPDX-License-Identifier: Apache-2.0
"""The trained surface lies where the true one does, not a little outside: on a ball and on the faces of a cube."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ring_c2w
from helpers.training import make_config, set_up
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.data.scene import write_scene

RADIUS, HALF_EDGE = 0.8, 0.48
WIDTH, HEIGHT, VIEWS = 153, 128, 20
AXES = Rotation.from_euler("xyz", [25, -35, 50], degrees=True).as_matrix()
"""Of the cube, columns."""


def hit_ball(origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    along = -(origins * directions).sum(-1)
    squared = RADIUS**2 - (origins**2).sum(-1) + along**2
    distance = along - np.sqrt(np.where(squared > 0, squared, np.nan))
    return distance, (origins + distance[..., None] * directions) / RADIUS


def hit_cube(origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By slabs: the last of the three entries is the hit, if it is before the first exit."""
    origins, directions = np.broadcast_arrays(origins @ AXES, directions @ AXES)
    entries = (-np.sign(directions) * HALF_EDGE - origins) / directions
    exits = (np.sign(directions) * HALF_EDGE - origins) / directions
    axis = entries.argmax(axis=-1)
    distance = entries.max(axis=-1)
    normals = -np.sign(np.take_along_axis(directions, axis[..., None], -1)) * AXES.T[axis]
    return np.where(distance < exits.min(axis=-1), distance, np.nan), normals


def write_capture(folder: Path, hit) -> Path:
    c2w = ring_c2w(VIEWS, 15.0, np.random.default_rng(1))
    focal = 0.45 * HEIGHT * 15.0
    K = np.tile(np.array([[focal, 0, (WIDTH - 1) / 2], [0, focal, (HEIGHT - 1) / 2], [0, 0, 1]]), (VIEWS, 1, 1))
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    rays = np.einsum("nij,hwj->nhwi", np.linalg.inv(K), np.stack([x, y, np.ones_like(x)], axis=-1).astype(float))
    world = np.einsum("nij,nhwj->nhwi", c2w[:, :3, :3], rays / np.linalg.norm(rays, axis=-1, keepdims=True))
    distance, normals = hit(c2w[:, None, None, :3, 3], world)
    masks = np.isfinite(distance)
    camera = np.einsum("nji,nhwj->nhwi", c2w[:, :3, :3], normals)
    write_scene(
        folder,
        names=tuple(f"{i:02d}" for i in range(VIEWS)),
        K=K,
        c2w=c2w,
        world_from_unit=np.eye(4),
        masks=masks,
        normals=np.where(masks[..., None], camera, 0.0).astype(np.float32),
    )
    return folder


def outward_offsets(field, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """How far outside of true surface points the field's zero lies, along their normals."""
    steps = np.linspace(-0.03, 0.03, 61)
    along = torch.from_numpy(points[:, None] + steps[:, None] * normals[:, None]).float()
    with torch.no_grad():
        f = field.sdf(along).numpy()
    first = (f > 0).argmax(axis=1)
    assert (first > 0).all()
    rows = np.arange(len(f))
    before, after = f[rows, first - 1], f[rows, first]
    return steps[first - 1] - before / (after - before) * (steps[1] - steps[0])


def ball_points() -> tuple[np.ndarray, np.ndarray]:
    """Where cameras of the ring, 10 to 30 deg up, see it well."""
    normals = np.random.default_rng(0).standard_normal((4000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normals = normals[np.abs(normals[:, 2]) < 0.7]
    return RADIUS * normals, normals


def cube_points() -> tuple[np.ndarray, np.ndarray]:
    """The middles of the faces that look to the side or up."""
    rng = np.random.default_rng(0)
    points, normals = [], []
    for axis in range(3):
        for side in (-1, 1):
            local = rng.uniform(-0.6, 0.6, (500, 3)) * HALF_EDGE
            local[:, axis] = side * HALF_EDGE
            normal = side * AXES[:, axis]
            if normal[2] > -0.4:
                points.append(local @ AXES.T)
                normals.append(np.tile(normal, (500, 1)))
    return np.concatenate(points), np.concatenate(normals)


def true_volume(sdf_of, n: int = 193) -> torch.Tensor:
    axis = torch.linspace(-1, 1, n)
    return sdf_of(torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1))


def cube_sdf(x: torch.Tensor) -> torch.Tensor:
    q = (x @ torch.from_numpy(AXES).float()).abs() - HALF_EDGE
    return q.clamp(min=0).norm(dim=-1) + q.amax(dim=-1).clamp(max=0)


@pytest.mark.slow
def test_a_ball_is_not_inflated(tmp_path: Path):
    """The whole method, as it comes: .05% of the radius is a fortieth of a pixel here."""
    trainer = set_up(make_config("pmni-calibrated", write_capture(tmp_path / "scene", hit_ball), tmp_path, 1500))
    trainer.train()
    offsets = outward_offsets(trainer.pipeline.model.field, *ball_points())
    assert abs(offsets.mean()) < 0.0005 * RADIUS
    assert offsets.std() < 0.001 * RADIUS


@pytest.mark.slow
def test_true_planes_stay_where_they_are(tmp_path: Path):
    """Normals don't hold a plane's offset, so that a bias of rendering or masks would move it. (From a start of its own
    a cube stays half a percent too large: its edges are round by a voxel.)"""
    config = make_config("pmni-calibrated", write_capture(tmp_path / "scene", hit_cube), tmp_path, 1500)
    trainer = set_up(config)
    model = trainer.pipeline.model
    model.field.fit(true_volume(cube_sdf))
    model.grid.refresh(model.field.sdf, everywhere=True)
    assert np.abs(outward_offsets(model.field, *cube_points())).max() < 1e-4 * HALF_EDGE
    trainer.train()
    offsets = outward_offsets(model.field, *cube_points())
    assert abs(offsets.mean()) < 0.0005 * HALF_EDGE

# SPDX-License-Identifier: Apache-2.0
"""Points on the surface with unit normals, from a run's signed distance itself: no mesh, and no resolution of one.

    python examples/03_sample_surface.py CONFIG points.ply

CONFIG is the config.yml of a run. The points are in the data's world and units, coloured by their normals.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open3d as o3d
import tyro

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.errors import PmniError, exit_on_error
from pmni_nerfstudio.export.world_sdf import WorldSdf, world_sdf
from pmni_nerfstudio.training.trained_run import load_run

BAND = 0.02  # in radii of the scene's sphere: points are drawn this near to the surface
DRAWN = 1 << 18  # points a round


def sample(sdf: WorldSdf, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points and unit normals, (count, 3) each.

    Points drawn evenly from a thin band round the surface and then moved onto it lie evenly on it, but for the bend
    of the surface over the band's width.
    """
    kept, found = [], 0
    while found < count:
        inside = rng.uniform(-1, 1, (DRAWN, 3))
        points = sdf.centre + sdf.radius * inside[np.linalg.norm(inside, axis=1) < 1]
        points = points[np.abs(sdf(points)[0]) < BAND * sdf.radius]
        if len(points) == 0:
            raise PmniError("the run has no surface: was it trained long enough?")
        for _ in range(10):  # Newton's steps along the gradient
            value, gradient = sdf(points)
            points = points - (value / (gradient**2).sum(axis=1).clip(1e-6))[:, None] * gradient
        value, gradient = sdf(points)
        on = np.abs(value) < 1e-4 * sdf.radius  # false for NaN: points that left the scene
        kept.append(np.concatenate([points[on], gradient[on]], axis=1))
        found += int(on.sum())
    points, gradient = np.split(np.concatenate(kept)[:count], 2, axis=1)
    return points, gradient / np.linalg.norm(gradient, axis=1, keepdims=True)


def main(
    config: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path], /, count: int = 100_000, seed: int = 0
) -> None:
    """Sample the surface.

    Args:
        config: the run's config.yml.
        out: point cloud to write (.ply).
        count: how many points.
        seed: the same seed gives the same points.
    """
    points, normals = sample(world_sdf(load_run(config)), count, np.random.default_rng(seed))
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))
    cloud.normals = o3d.utility.Vector3dVector(normals)
    cloud.colors = o3d.utility.Vector3dVector((normals + 1) / 2)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        o3d.io.write_point_cloud(str(temporary), cloud)
    print(f"wrote {count:,} points to {out}, in the data's units")


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main)

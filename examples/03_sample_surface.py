# SPDX-License-Identifier: Apache-2.0
"""Sample points and normals on the surface of a trained run, directly from its signed distance and without a mesh.

    python examples/03_sample_surface.py CONFIG points.ply

Needs the config.yml (CONFIG) of a training run. The points are in the data world and its units, colored by their normals.
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

BAND = 0.02  # maximum distance of initial samples from the surface, in radii of the scene's sphere
BATCH = 1 << 18  # samples per iteration


def sample(sdf: WorldSdf, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points on the surface and unit normals, (count, 3) each.

    Uniform samples of a thin band around the surface are projected onto it, which gives a uniform density on the surface
    up to its curvature over the width of the band.
    """
    samples, found = [], 0
    while found < count:
        cube = rng.uniform(-1, 1, (BATCH, 3))
        points = sdf.center + sdf.radius * cube[np.linalg.norm(cube, axis=1) < 1]
        points = points[np.abs(sdf(points)[0]) < BAND * sdf.radius]
        if len(points) == 0:
            raise PmniError("the run has no surface; train it longer")
        for _ in range(10):  # Newton's method along the gradient
            value, gradient = sdf(points)
            points = points - (value / (gradient**2).sum(axis=1).clip(1e-6))[:, None] * gradient
        value, gradient = sdf(points)
        converged = np.abs(value) < 1e-4 * sdf.radius  # false for NaN, outside the scene
        samples.append(np.concatenate([points[converged], gradient[converged]], axis=1))
        found += int(converged.sum())
    points, gradient = np.split(np.concatenate(samples)[:count], 2, axis=1)
    return points, gradient / np.linalg.norm(gradient, axis=1, keepdims=True)


def main(
    config: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path], /, count: int = 100_000, seed: int = 0
) -> None:
    """Sample the surface.

    Args:
        config: config.yml of the run.
        out: point cloud to write (.ply).
        count: number of points.
        seed: random seed.
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

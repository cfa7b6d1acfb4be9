# SPDX-License-Identifier: Apache-2.0
"""Evaluate the signed distance of a trained run and its gradient at given points.

    python examples/04_query_sdf.py CONFIG points.npy distances.npy

Needs the config.yml (CONFIG) of a training run, and points.npy with points (P, 3) in the data world. Writes an array
(P, 4): the signed distance in the data's units, negative inside, and its gradient. The values are distances within about
a tenth of the scene's radius from the surface; farther away only their sign is meaningful. They are NaN outside the cube
that circumscribes the scene's sphere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.images import open_npy
from pmni_nerfstudio.errors import PmniError, exit_on_error
from pmni_nerfstudio.export.world_sdf import world_sdf
from pmni_nerfstudio.training.trained_run import load_run


def main(
    config: tyro.conf.Positional[Path], points: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path], /
) -> None:
    """Evaluate the signed distance.

    Args:
        config: config.yml of the run.
        points: .npy file of points (P, 3) in the data world.
        out: .npy file to write, (P, 4).
    """
    queries = np.array(open_npy(points), dtype=np.float64)
    if queries.ndim != 2 or queries.shape[1] != 3:
        raise PmniError(f"{points}: has an array of shape {queries.shape}; save points as (P, 3)")
    sdf = world_sdf(load_run(config))
    distances, gradients = sdf(queries)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        np.save(temporary, np.column_stack([distances, gradients]))

    print(f"scene's sphere: center {sdf.center}, radius {sdf.radius:g} (the data's units)")
    at_origin, at_center = (sdf(point[None])[0][0] for point in (np.zeros(3), sdf.center))
    print(f"signed distance at the data's origin: {at_origin:.5g}, at the sphere's center: {at_center:.5g}")
    print(f"{len(queries)} points: {(distances < 0).sum()} inside, {np.isnan(distances).sum()} outside the scene")


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main)

# SPDX-License-Identifier: Apache-2.0
"""Signed distances of given points to the surface of a trained run, and their gradients.

    python examples/04_query_sdf.py CONFIG points.npy distances.npy

CONFIG is the config.yml of a run; points.npy holds (P, 3) floats in the data's world. distances.npy gets (P, 4): the
distance in the data's units, negative inside, and its gradient, which has no unit. Within a tenth of the sphere's
radius of the surface or so it is a distance; further off its sign is right and its size is not. Points outside the
cube about the scene's sphere get NaN.
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
    """Ask the signed distance.

    Args:
        config: the run's config.yml.
        points: where to ask, (P, 3) in the data's world.
        out: what to write, (P, 4).
    """
    asked = np.array(open_npy(points), dtype=np.float64)
    if asked.ndim != 2 or asked.shape[1] != 3:
        raise PmniError(f"{points}: holds an array of shape {asked.shape}: save points as (P, 3)")
    sdf = world_sdf(load_run(config))
    distances, gradients = sdf(asked)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        np.save(temporary, np.column_stack([distances, gradients]))

    print(f"one radius of the scene's sphere is {sdf.radius:g} of the data's units; its centre: {sdf.centre}")
    print(
        f"at the data's origin: {sdf(np.zeros((1, 3)))[0][0]:.5g}; at the sphere's centre: {sdf(sdf.centre[None])[0][0]:.5g}"
    )
    print(f"{len(asked)} points: {(distances < 0).sum()} inside, {np.isnan(distances).sum()} outside the scene")


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main)

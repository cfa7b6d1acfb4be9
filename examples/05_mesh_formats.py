# SPDX-License-Identifier: Apache-2.0
"""Simplify a mesh to several levels of detail, measure the deviation from the full mesh, and write common formats.

    python examples/05_mesh_formats.py RESULT OUT

Needs the RESULT folder that `pmni export` wrote. Writes OUT/mesh_100.stl, .obj and .glb, mesh_25.* and mesh_5.*, named by
the percentage of the faces. All files keep the axes and units of the data (glTF viewers assume y up and meters).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from pmni_nerfstudio.data.result_files import read_mesh, write_mesh
from pmni_nerfstudio.errors import PmniError, exit_on_error
from pmni_nerfstudio.geometry.mesh import simplify
from pmni_nerfstudio.geometry.ray_casting import RayCaster

SAMPLES = 50_000


def main(
    result: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    /,
    percent: tuple[float, ...] = (100.0, 25.0, 5.0),
    formats: tuple[str, ...] = ("stl", "obj", "glb"),
) -> None:
    """Write the levels of detail.

    Args:
        result: folder with mesh.ply.
        out: output folder, created if necessary.
        percent: number of faces of each level, in percent of the full mesh.
        formats: file formats.
    """
    if not all(0 < percentage <= 100 for percentage in percent):
        raise PmniError(f"percent: {percent} is out of range; give numbers above 0 and up to 100")
    full = read_mesh(result / "mesh.ply")
    rays, samples = RayCaster(full), np.asarray(full.sample(SAMPLES, seed=0))
    out.mkdir(parents=True, exist_ok=True)
    table = Table("level", "faces", "mean distance", "maximum", title=f"{result / 'mesh.ply'} (in its units)")
    for percentage in percent:
        level = simplify(full, round(percentage / 100 * len(full.faces)))
        # In both directions: a level without an arm is close to the full mesh, but not the full mesh to the level.
        to_full = rays.distance(np.asarray(level.sample(SAMPLES, seed=0)))
        to_level = RayCaster(level).distance(samples)
        mean, maximum = (to_full.mean() + to_level.mean()) / 2, max(to_full.max(), to_level.max())
        table.add_row(f"{percentage:g}%", f"{len(level.faces):,}", f"{mean:.4g}", f"{maximum:.4g}")
        for suffix in formats:
            write_mesh(out / f"mesh_{percentage:g}.{suffix}", level)
    Console().print(table)


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main)

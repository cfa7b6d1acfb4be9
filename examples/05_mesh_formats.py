# SPDX-License-Identifier: Apache-2.0
"""A result's mesh in other formats and with fewer faces, and how far each level is from the full mesh.

    python examples/05_mesh_formats.py RESULT OUT

RESULT is what `pmni export` wrote. In OUT: mesh_100.stl, .obj and .glb, mesh_25.*, mesh_5.*, named by the percentage
of the faces. All of them keep the data's axes and units (glTF viewers take y for up and units for metres).
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
    """Write the levels.

    Args:
        result: folder of a result, with mesh.ply.
        out: folder to write to.
        percent: faces of each level in % of the full mesh's.
        formats: of the files.
    """
    if not all(0 < share <= 100 for share in percent):
        raise PmniError(f"percent: {percent} are no shares: give numbers above 0 and up to 100")
    full = read_mesh(result / "mesh.ply")
    rays, samples = RayCaster(full), np.asarray(full.sample(SAMPLES, seed=0))
    out.mkdir(parents=True, exist_ok=True)
    table = Table("level", "faces", "mean distance", "largest", title=f"{result / 'mesh.ply'} (in its units)")
    for share in percent:
        level = simplify(full, round(share / 100 * len(full.faces)))
        # Both ways: a level that lost an arm is near the full mesh, and the full mesh is not near it.
        there = rays.distance(np.asarray(level.sample(SAMPLES, seed=0)))
        back = RayCaster(level).distance(samples)
        mean, largest = (there.mean() + back.mean()) / 2, max(there.max(), back.max())
        table.add_row(f"{share:g}%", f"{len(level.faces):,}", f"{mean:.4g}", f"{largest:.4g}")
        for suffix in formats:
            write_mesh(out / f"mesh_{share:g}.{suffix}", level)
    Console().print(table)


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main)

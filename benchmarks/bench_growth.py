# SPDX-License-Identifier: Apache-2.0
"""Measure how time and memory of `ns-train pmni` grow with the views, the resolution and the finest grid.

    python benchmarks/bench_growth.py [--shape figure] [--quick]

Each row is a complete run, including registration, in a process of its own, on a synthetic scene whose initial poses are
rotated by 15 deg and shifted by half a radius. The columns "ratio" are relative to the first row: with 4 times the pixels,
a typical run takes about 1.6 times as long (docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import runs
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Case:
    """Scene size and grid of one run."""

    views: int = 20
    width: int = 153
    height: int = 128
    finest: int = 0
    """Vertices per axis of the finest grid; 0 selects the default, which depends on the resolution of the maps."""

    def flags(self) -> list[str]:
        """Flags of ns-train."""
        if not self.finest:
            return []
        cells = self.finest - 1
        return ["--pipeline.model.sdf-field.grid-vertices", *(str(cells // part + 1) for part in (4, 2, 1))]


CASES = (
    Case(),
    Case(views=10),
    Case(views=40),
    Case(width=306, height=256),
    Case(width=612, height=512),
    Case(finest=65),
    Case(finest=129),
    Case(finest=257),
)
QUICK = (Case(8, 60, 50), Case(12, 60, 50), Case(8, 60, 50, finest=33))


def main() -> None:
    """Run all cases, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="figure", help="shape of pmni synth")
    parser.add_argument("--quick", action="store_true", help="tiny scenes and 20 steps, to check that everything runs")
    arguments = parser.parse_args()
    table = Table(title=f"ns-train pmni, {arguments.shape}")
    for column in ("views", "maps", "finest grid", "seconds", "ratio", "GB", "ratio "):
        table.add_column(column, justify="right")
    first: runs.ResourceUsage | None = None
    with tempfile.TemporaryDirectory() as name:
        for number, case in enumerate(QUICK if arguments.quick else CASES):
            size = ["--views", str(case.views), "--width", str(case.width), "--height", str(case.height)]
            scene = runs.make_scene(Path(name) / f"scene{number}", ["--shape", arguments.shape, *size, *runs.NOISE])
            steps = ["--max-num-iterations", "20"] if arguments.quick else []
            usage = runs.train("pmni", scene, Path(name) / f"out{number}", [*case.flags(), *steps])
            first = usage if first is None else first
            table.add_row(
                str(case.views),
                f"{case.width}x{case.height}",
                f"{case.finest}^3" if case.finest else "default",
                f"{usage.seconds:.0f}",
                f"{usage.seconds / first.seconds:.2f}",
                f"{usage.peak_mb / 1024:.2f}",
                f"{usage.peak_mb / first.peak_mb:.2f}",
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

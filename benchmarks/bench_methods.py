# SPDX-License-Identifier: Apache-2.0
"""`pmni` beside PMNI's own recipe (`pmni-original`) on one scene: what each reaches in the same time, and when.

    python benchmarks/bench_methods.py [--shape figure] [--width 153] [--height 128] [--longest 4] [--target-pct 0.2]

The scene is synthetic: 20 views whose cameras are turned by 15 deg and shifted by half a radius. `ns-train pmni` is run
whole, registration included. `pmni-original` begins on its ring of cameras, as published, at the right elevation and in
the right direction, and is then given as many steps as fit the same wall time, its schedule in small; then twice as
many, and so on up to `--longest` times, until it is within the target. It is run twice over: with its published hash
encoding, and with our plain grid in its place, which is some ten times faster on a CPU. The depth maps that its losses
need are made before, and aren't in its times.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import runs
from rich.console import Console
from rich.table import Table

PROBE = (8, 40)
"""Steps of the two runs whose difference says what a step takes."""
FIELDS = {
    "hash grid, as published": [],
    "plain grid": [
        "--pipeline.model.sdf-field.encoding", "grid",
        "--pipeline.model.sdf-field.initial-levels", "0.3",
        "--optimizers.sdf.optimizer.lr", "2e-3",
    ],
}  # fmt: skip


def seconds_a_step(scene: Path, out: Path, options: list[str]) -> tuple[float, float]:
    """What pmni-original takes before its first step, and for each, in seconds."""
    short, long = (
        runs.train("pmni-original", scene, out / str(steps), [*options, "--max-num-iterations", str(steps)]).seconds
        for steps in PROBE
    )
    step = max((long - short) / (PROBE[1] - PROBE[0]), 1e-3)
    return max(short - PROBE[0] * step, 0.0), step


def row(name: str, trained: runs.Trained, steps: str, ours: runs.Trained) -> list[str]:
    """Cells of the table; ratios are to ours."""
    rotation, chamfer, normals = "-", "-", "-"
    assert ours.metrics is not None
    if trained.metrics is not None:
        degrees, percent = trained.metrics["poses"]["rot_deg"], trained.metrics["surface"]["chamfer_pct"]
        rotation, chamfer = f"{degrees:.3f}", f"{percent:.3f}"
        normals = f"{trained.metrics['normals']['mae_deg']:.2f}"
        if trained is not ours:
            rotation += f" (x{degrees / ours.metrics['poses']['rot_deg']:.0f})"
            chamfer += f" (x{percent / ours.metrics['surface']['chamfer_pct']:.0f})"
    seconds, gb = f"{trained.spent.seconds:.0f}", f"{trained.spent.peak_mb / 1024:.1f}"
    return [name, steps, seconds, rotation, chamfer, normals, gb]


def main() -> None:
    """Make the scene, run both, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="figure", help="of pmni synth")
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--width", type=int, default=153)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument(
        "--longest", type=float, default=4, help="times our wall time that pmni-original is given at most"
    )
    parser.add_argument("--target-pct", type=float, default=0.2, help="Chamfer distance to reach, %% of the diameter")
    parser.add_argument("--ours", nargs=argparse.REMAINDER, default=[], help="more flags of ns-train pmni, last")
    arguments = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = ["--views", str(arguments.views), "--width", str(arguments.width), "--height", str(arguments.height)]
        scene = runs.make_scene(folder / "scene", ["--shape", arguments.shape, *size, *runs.NOISE])
        runs.run(["pmni", "integrate", str(scene)], folder / "integrate.log")
        ours = runs.train_and_score("pmni", scene, folder / "ours", arguments.ours)
        assert ours.metrics is not None
        table = Table(title=f"{arguments.shape}, {arguments.views} views of {arguments.width}x{arguments.height}")
        for column in ("method", "steps", "seconds", "rotation, deg", "Chamfer, %", "normals, deg", "GB"):
            table.add_column(column, justify="left" if column == "method" else "right")

        def add(name: str, trained: runs.Trained, steps: str) -> None:
            cells = row(name, trained, steps, ours)
            table.add_row(*cells)
            console.print("done:", *cells)

        add("pmni", ours, "")
        lines = [f"Chamfer of {arguments.target_pct:g}%: pmni has {ours.metrics['surface']['chamfer_pct']:.3f}% "
                 f"after {ours.spent.seconds:.0f} s"]  # fmt: skip
        for field, options in FIELDS.items():
            before, step = seconds_a_step(scene, folder / field, options)
            times, found = 1.0, ""
            while times <= arguments.longest and "reached" not in found:
                steps = max(10, int((times * ours.spent.seconds - before) / step))
                run = [*options, "--max-num-iterations", str(steps)]
                theirs = runs.train_and_score("pmni-original", scene, folder / field / f"x{times:g}", run)
                add(f"pmni-original, {field}", theirs, str(steps))
                ratio = theirs.spent.seconds / ours.spent.seconds
                chamfer = float("inf") if theirs.metrics is None else theirs.metrics["surface"]["chamfer_pct"]
                reached = chamfer <= arguments.target_pct
                found = f"reached after {ratio:.1f} times ours" if reached else f"not in {ratio:.1f} times ours"
                times *= 2
            lines.append(f"  pmni-original, {field}: {found}")
        console.print(table)
        for line in lines:
            console.print(line)


if __name__ == "__main__":
    main()

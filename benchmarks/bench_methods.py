# SPDX-License-Identifier: Apache-2.0
"""Compare `pmni` with PMNI's original training schedule (`pmni-original`) on one scene, at equal wall time.

    python benchmarks/bench_methods.py [--shape figure] [--width 153] [--height 128] [--longest 4] [--target-pct 0.2]

The scene is synthetic: 20 views, with initial poses rotated by 15 deg and shifted by half a radius. `ns-train pmni` runs
completely, including registration. `pmni-original` starts from its published ring of cameras, with the true elevation and
direction, and gets as many steps as fit into the same wall time, with its schedule scaled to them; then twice as many, and
so on up to --longest times, until its Chamfer distance is below the target. It runs with its published hash encoding and
with the plain grid, which is about ten times as fast on a CPU. The depth maps for its losses are made before, and are not
included in its times. In the table, factors in parentheses are errors relative to those of pmni; the last lines say
whether, and after how much time, the original reached the target.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import runs
from rich.console import Console
from rich.table import Table

PROBE = (8, 40)
"""Steps of the two runs whose difference gives the time per step."""
FIELDS = {
    "hash grid, as published": [],
    "plain grid": [
        "--pipeline.model.sdf-field.encoding", "grid",
        "--pipeline.model.sdf-field.initial-levels", "0.3",
        "--optimizers.sdf.optimizer.lr", "2e-3",
    ],
}  # fmt: skip


def time_per_step(scene: Path, out: Path, options: list[str]) -> tuple[float, float]:
    """Time of pmni-original before its first step, and per step, in seconds."""
    short, long = (
        runs.train("pmni-original", scene, out / str(steps), [*options, "--max-num-iterations", str(steps)]).seconds
        for steps in PROBE
    )
    step = max((long - short) / (PROBE[1] - PROBE[0]), 1e-3)
    return max(short - PROBE[0] * step, 0.0), step


def row(name: str, trained: runs.Trained, steps: str, ours: runs.Trained) -> list[str]:
    """Cells of the table; ratios are relative to `ours`."""
    rotation, chamfer, normals = "-", "-", "-"
    assert ours.metrics is not None
    if trained.metrics is not None:
        degrees, percent = trained.metrics["poses"]["rot_deg"], trained.metrics["surface"]["chamfer_pct"]
        rotation, chamfer = f"{degrees:.3f}", f"{percent:.3f}"
        normals = f"{trained.metrics['normals']['mae_deg']:.2f}"
        if trained is not ours:
            rotation += f" (x{degrees / ours.metrics['poses']['rot_deg']:.0f})"
            chamfer += f" (x{percent / ours.metrics['surface']['chamfer_pct']:.0f})"
    seconds, gb = f"{trained.usage.seconds:.0f}", f"{trained.usage.peak_mb / 1024:.1f}"
    return [name, steps, seconds, rotation, chamfer, normals, gb]


def main() -> None:
    """Run both methods on one scene, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="figure", help="shape of pmni synth")
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--width", type=int, default=153)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--longest", type=float, default=4, help="maximum wall time of pmni-original, relative to pmni")
    parser.add_argument("--target-pct", type=float, default=0.2, help="target Chamfer distance in %% of the diameter")
    parser.add_argument(
        "--ours", nargs=argparse.REMAINDER, default=[], help="additional flags of ns-train pmni; must come last"
    )
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
        lines = [f"Chamfer of {arguments.target_pct:g}%: pmni reaches {ours.metrics['surface']['chamfer_pct']:.3f}% "
                 f"after {ours.usage.seconds:.0f} s"]  # fmt: skip
        for field, options in FIELDS.items():
            before, step = time_per_step(scene, folder / field, options)
            times, outcome = 1.0, ""
            while times <= arguments.longest and "reached" not in outcome:
                steps = max(10, int((times * ours.usage.seconds - before) / step))
                run = [*options, "--max-num-iterations", str(steps)]
                theirs = runs.train_and_score("pmni-original", scene, folder / field / f"x{times:g}", run)
                add(f"pmni-original, {field}", theirs, str(steps))
                ratio = theirs.usage.seconds / ours.usage.seconds
                chamfer = float("inf") if theirs.metrics is None else theirs.metrics["surface"]["chamfer_pct"]
                reached = chamfer <= arguments.target_pct
                outcome = f"reached after {ratio:.1f} times as long" if reached else f"not in {ratio:.1f} times as long"
                times *= 2
            lines.append(f"  pmni-original, {field}: {outcome}")
        console.print(table)
        for line in lines:
            console.print(line)


if __name__ == "__main__":
    main()

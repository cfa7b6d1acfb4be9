# SPDX-License-Identifier: Apache-2.0
"""Run all benchmarks on the CPU one after another.

    python benchmarks/run_all.py [--quick] [--only bench_training.py ...]

Takes about an hour on two cores; --quick only checks that everything runs. Not included: bench_cuda.py, which needs
a GPU, and bench_viewer.py, which needs Chromium. Compare ratios, not absolute numbers: each benchmark measures its
ratios within one run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console

SMALL = ["--views", "8", "--width", "60", "--height", "50"]
TINY = [*SMALL, "--longest", "1", "--ours"]
SCRIPTS = {
    "bench_training.py": ["--steps", "12", "--stock-steps", "1", "--stock-rays", "16"],
    "bench_encodings.py": ["--points", "200", "--repeats", "1"],
    "bench_threads.py": ["--steps", "1", "--repeats", "1"],
    "bench_methods.py": [*TINY, "--max-num-iterations", "20"],
    "bench_growth.py": ["--quick"],
    "bench_commands.py": [*SMALL, "--steps", "20"],
    "bench_poses.py": ["--shapes", "figure", "--orders", "ring", *SMALL],
    "bench_integration.py": ["--sizes", "60x50"],
    "bench_photometric.py": ["--size", "40", "--slow-pixels", "20"],
}
"""Benchmarks, and the flags of each with --quick."""


def main() -> None:
    """Run the benchmarks until one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny scenes and few steps, to check that everything runs")
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS), help="benchmarks to run")
    arguments = parser.parse_args()
    console = Console()
    for script in arguments.only:
        console.rule(script)
        options = SCRIPTS[script] if arguments.quick else []
        done = subprocess.run([sys.executable, str(Path(__file__).parent / script), *options], check=False)
        if done.returncode != 0:
            raise SystemExit(f"{script}: failed with exit code {done.returncode}")


if __name__ == "__main__":
    main()

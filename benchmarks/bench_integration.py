# SPDX-License-Identifier: Apache-2.0
"""Measure depth error and time of bilateral normal integration, in one thread.

    python benchmarks/bench_integration.py [CAPTURES] [--k 1.7] [--max-rounds 60] [--sizes 153x128 306x256]

CAPTURES is a folder with one folder per single view, as in the DiLiGenT data of bilateral normal integration (Cao et al.,
ECCV 2022): normal_map.png (x right, y up, z towards the viewer), mask.png, K.txt (pixel centers at integers) and
depth_gt.npz (z depth in mm). Without it, synthetic shapes are integrated, with errors in thousandths of the object's
radius.

The error is the mean absolute depth difference after scaling by the median ratio, as in the published protocol; "ratio"
is relative to the published error. The published errors and times are from the authors' log (optimization_log.md,
"Baseline") with k = 2, on one thread of an Apple M1 Max; the authors' later compiled code has the same errors and takes
3.6 s instead of 39.9 s for bear, cat, cow, pot2 and reading. The default k was chosen on these objects, so that the errors
on other objects may be larger.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.images import read_mask, read_normals
from pmni_nerfstudio.errors import PmniError, exit_on_error
from pmni_nerfstudio.geometry.transforms import flip_y_and_z
from pmni_nerfstudio.integration.bilateral import integrate_normals
from pmni_nerfstudio.synth.scene import SynthConfig, make_scene

PUBLISHED = {  # mm, seconds
    "bear": (0.334, 2.31),
    "buddha": (1.098, 6.30),
    "cat": (0.074, 9.63),
    "cow": (0.058, 21.72),
    "goblet": (9.018, 11.66),
    "harvest": (1.838, 13.00),
    "pot1": (0.635, 5.85),
    "pot2": (0.220, 2.99),
    "reading": (0.257, 3.23),
}


@dataclass(frozen=True, eq=False)
class Capture:
    """One view and its ground truth, in OpenCV camera axes."""

    name: str
    normals: np.ndarray
    """(H, W, 3), unit."""
    mask: np.ndarray
    """(H, W) bool."""
    K: np.ndarray
    """(3, 3), pixel centers at integers."""
    depth: np.ndarray
    """(H, W), true z depth; NaN where unknown."""
    unit: float
    """Unit of the error, in units of the depth."""


def real_captures(folder: Path) -> Iterator[Capture]:
    """Captures of a folder.

    Raises:
        PmniError: the folder has no captures.
    """
    views = sorted(path.parent for path in folder.glob("*/depth_gt.npz"))
    if not views:
        raise PmniError(f"{folder}: has no subfolder with depth_gt.npz; give the folder of the single views")
    for path in views:
        normals = flip_y_and_z(read_normals(path / "normal_map.png").astype(np.float64))
        normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
        with np.load(path / "depth_gt.npz") as archive:
            depth = archive[archive.files[0]]
        yield Capture(path.name, normals, read_mask(path / "mask.png"), np.loadtxt(path / "K.txt"), depth, 1.0)


def synthetic_captures(sizes: list[tuple[int, int]]) -> Iterator[Capture]:
    """Two views each of a shape with depth discontinuities and of a smooth shape."""
    for width, height in sizes:
        for shape in ("figure", "blob"):
            scene = make_scene(SynthConfig(shape=shape, views=2, width=width, height=height))
            for view, name in enumerate(scene.names):
                label = f"{shape} {name}, {width}x{height}"
                yield Capture(
                    label, scene.normals[view].astype(np.float64), scene.masks[view], scene.K, scene.depth[view], 1e-3
                )


def mean_error(depth: np.ndarray, capture: Capture) -> float:
    """Mean absolute depth difference after scaling by the median ratio."""
    valid = capture.mask & np.isfinite(capture.depth) & (capture.depth > 0)
    scale = np.median(capture.depth[valid] / depth[valid])
    return float(np.abs(capture.depth[valid] - scale * depth[valid]).mean() / capture.unit)


def size(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT."""
    width, height = text.split("x")
    return int(width), int(height)


def main() -> None:
    """Integrate all captures, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captures", type=Path, nargs="?", help="folder of real single views; default: synthetic shapes")
    parser.add_argument("--k", type=float, default=1.7)
    parser.add_argument("--max-rounds", type=int, default=60)
    parser.add_argument(
        "--sizes", type=size, nargs="+", default=[(153, 128), (306, 256)], help="sizes of the synthetic maps"
    )
    args = parser.parse_args()
    captures = real_captures(args.captures) if args.captures else synthetic_captures(args.sizes)
    error_unit = "mm" if args.captures else "radius/1000"
    print(f"k {args.k}, at most {args.max_rounds} rounds; error in {error_unit}; wall time and CPU time in s")
    print(f"{'':<22}{'pixels':>8}{'error':>9}{'s':>7}{'CPU s':>7}{'published':>11}{'s':>7}{'ratio':>7}")
    totals = np.zeros(3)
    for capture in captures:
        clock, cpu = time.perf_counter(), time.process_time()
        depth = integrate_normals(capture.normals, capture.mask, capture.K, k=args.k, max_rounds=args.max_rounds)
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        error = mean_error(depth, capture)
        line = f"{capture.name:<22}{capture.mask.sum():>8}{error:>9.4f}{clock:>7.2f}{cpu:>7.2f}"
        published = PUBLISHED.get(capture.name) if args.captures else None
        if published:
            line += f"{published[0]:>11.3f}{published[1]:>7.1f}{error / published[0]:>7.2f}"
        totals += (clock, cpu, published[1] if published else 0)
        print(line, flush=True)
    print(f"{'total':<39}{totals[0]:>7.2f}{totals[1]:>7.2f}" + (f"{totals[2]:>18.1f}" if totals[2] else ""))


if __name__ == "__main__":
    with exit_on_error():
        main()

# SPDX-License-Identifier: Apache-2.0
"""Measure accuracy and time of photometric stereo, against plain solvers, in one thread.

    python benchmarks/bench_photometric.py [--size 160] [--lights 20] [--slow-pixels 300] [--capture NPZ]

Images are rendered here: a bumpy sphere, matte or glossy (Blinn-Phong), with attached shadows, a tenth of the values in cast
ones, noise and clipping. Compared are:

- ours: `photometric.solver.solve`;
- batched: the same estimator as its textbook form, in double precision: rank rejection, then 20 steps of iteratively
  reweighted least squares for all pixels at once, with `numpy.linalg.solve`;
- slow: the same, pixel by pixel with `numpy.linalg.lstsq`, for a sample of the pixels; its time is extrapolated;
- least squares: all values, once.

NPZ is one view of a real or path-traced capture with `images` (lights, H, W) uint16, `lights` (lights, 3) and `mask`, and
optionally `normals` (H, W, 3), all with x right, y up, z towards the viewer.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pmni_nerfstudio.photometric.solver import SolverOptions, solve

OPTIONS = SolverOptions()


@dataclass(frozen=True, eq=False)
class Pixels:
    """Pixels of one view."""

    name: str
    values: np.ndarray
    """(p, n) float32, clipped at 1."""
    lights: np.ndarray
    """(n, 3) unit directions."""
    normals: np.ndarray | None
    """(p, 3), if known."""


def rendered(name: str, gloss: float, size: int, num_lights: int) -> Pixels:
    """A bumpy sphere seen orthographically, x right, y up, z towards the viewer."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[1 : -1 : size * 1j, -1 : 1 : size * 1j]
    inside = x**2 + y**2 < 0.96
    x, y = x[inside], y[inside]
    normals = np.stack([x + 0.15 * np.sin(9 * x), y + 0.15 * np.cos(7 * y), np.sqrt(1 - x**2 - y**2)], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    k = np.arange(num_lights)
    z = 1 - 0.36 * (k + 0.5) / num_lights
    turn = k * np.pi * (3 - np.sqrt(5))
    lights = np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], axis=1)
    half = lights + [0, 0, 1]
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    cosine = normals @ lights.T
    values = 0.5 * cosine + gloss * np.maximum(normals @ half.T, 0) ** 40
    values *= (cosine > 0) & (rng.random(cosine.shape) > 0.1)
    values += 0.002 * rng.standard_normal(values.shape)
    return Pixels(name, np.clip(values, 0, 1).astype(np.float32), lights, normals)


def loaded(path: Path) -> Pixels:
    """Pixels of a file (see above)."""
    with np.load(path) as file:
        mask = file["mask"]
        values = np.ascontiguousarray((file["images"][:, mask].astype(np.float32) / 65535).T)
        return Pixels(path.name, values, file["lights"], file["normals"][mask] if "normals" in file else None)


def ours(values: np.ndarray, lights: np.ndarray) -> np.ndarray:
    """Albedo times normal (p, 3) by the package's solver."""
    return solve(values, values >= 1, lights, OPTIONS).scaled_normals


def rank_weights(values: np.ndarray) -> np.ndarray:
    """Ones (p, n) for the values that rank rejection keeps."""
    count = values.shape[1]
    rank = values.argsort(axis=1).argsort(axis=1)
    low, high = round(OPTIONS.drop_dark * count), count - round(OPTIONS.drop_bright * count)
    return ((rank >= low) & (rank < high)).astype(float)


def batched(values: np.ndarray, lights: np.ndarray) -> np.ndarray:
    """The textbook form for all pixels at once."""
    images = values.astype(np.float64)
    keep = rank_weights(images)
    floor = 1e-3 * np.quantile(images, 0.99)
    weights, found = keep, np.zeros((len(images), 3))
    for _ in range(OPTIONS.steps):
        matrices = np.einsum("pn,ni,nj->pij", weights, lights, lights) + 1e-9 * np.eye(3)
        right = np.einsum("pn,pn,ni->pi", weights, images, lights)
        found = np.linalg.solve(matrices, right[..., None])[..., 0]
        weights = keep / np.maximum(np.abs(images - found @ lights.T), floor)
    return found


def slow(values: np.ndarray, lights: np.ndarray) -> np.ndarray:
    """The textbook form pixel by pixel."""
    out = np.empty((len(values), 3))
    keep = rank_weights(values) > 0
    for i, pixel in enumerate(values.astype(np.float64)):
        A, b = lights[keep[i]], pixel[keep[i]]
        weight = np.ones(len(b))
        for _ in range(OPTIONS.steps):
            root = np.sqrt(weight)
            out[i] = np.linalg.lstsq(A * root[:, None], b * root, rcond=None)[0]
            weight = 1 / np.maximum(np.abs(b - A @ out[i]), 1e-3)
    return out


def least_squares(values: np.ndarray, lights: np.ndarray) -> np.ndarray:
    """All values with equal weights."""
    return np.linalg.lstsq(lights, values.astype(np.float64).T, rcond=None)[0].T


def measured(
    method: Callable[[np.ndarray, np.ndarray], np.ndarray], pixels: Pixels, share: float = 1.0
) -> tuple[float, str]:
    """Seconds, the best of three and extrapolated from a share of the pixels; and the mean error in words."""
    chosen = np.linspace(0, len(pixels.values) - 1, max(1, round(share * len(pixels.values)))).astype(int)
    values = np.ascontiguousarray(pixels.values[chosen])
    seconds, found = float("inf"), np.zeros((0, 3))
    for _ in range(3 if share == 1 else 1):
        start = time.perf_counter()
        found = method(values, pixels.lights)
        seconds = min(seconds, time.perf_counter() - start)
    if pixels.normals is None:
        return seconds / len(chosen) * len(pixels.values), ""
    true = pixels.normals[chosen]
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(true, axis=1)
    known = lengths > 0
    cosine = (found * true).sum(axis=1)[known] / lengths[known]
    error = np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean()
    return seconds / len(chosen) * len(pixels.values), f"{error:.2f} deg on {known.mean():.1%}"


def main() -> None:
    """Print a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=160, help="width and height of the rendered images")
    parser.add_argument("--lights", type=int, default=20)
    parser.add_argument("--slow-pixels", type=int, default=300, help="pixels that the slow solver solves")
    parser.add_argument("--capture", type=Path, nargs="*", default=[], metavar="NPZ")
    arguments = parser.parse_args()
    data = [
        rendered(name, gloss, arguments.size, arguments.lights) for name, gloss in (("matte", 0.0), ("glossy", 0.4))
    ]
    for pixels in [*data, *map(loaded, arguments.capture)]:
        count = len(pixels.values)
        print(f"{pixels.name}: {count:,} pixels, {len(pixels.lights)} lights")
        own, error = measured(ours, pixels)
        print(f"  {'ours':<15}{own * 1e3:>10.1f} ms          {error}")
        for name, method in (("batched", batched), ("slow", slow), ("least squares", least_squares)):
            share = min(1.0, arguments.slow_pixels / count) if name == "slow" else 1.0
            seconds, error = measured(method, pixels, share)
            print(f"  {name:<15}{seconds * 1e3:>10.1f} ms{seconds / own:>8.1f} x {error}")


if __name__ == "__main__":
    main()

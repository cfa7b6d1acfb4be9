# SPDX-License-Identifier: Apache-2.0
"""Measure the speed of the field's encodings, compared with nerfstudio's PyTorch HashEncoding and the same hidden layer.

    python benchmarks/bench_encodings.py [--points 18000] [--threads 2] [--repeats 7]

Prints points per second (median of the repeats), and in parentheses the ratio to nerfstudio's encoding, of four jobs: the
signed distance; the same with its backward pass; signed distance and analytic gradient with the backward pass of both;
and the gradient by six-point differences with its backward pass. For the last, the plain grid is typically fifty times as
fast as nerfstudio's encoding (docs/benchmarks.md). The time of an Adam step depends only on the number of parameters, and
is printed separately.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Callable

import torch
from nerfstudio.field_components.encodings import HashEncoding as NerfstudioHashEncoding
from torch import Tensor, nn

from pmni_nerfstudio.fields.encodings import LevelEncoding
from pmni_nerfstudio.fields.hash_encoding import level_vertices
from pmni_nerfstudio.fields.mlp import EncodedSdf
from pmni_nerfstudio.fields.sdf_field import PmniField, PmniFieldConfig

LEVELS, BASE, GROWTH, LOG2_TABLE, FEATURES = 14, 32, 1.32, 19, 2


class NerfstudioLevels(LevelEncoding):
    """nerfstudio's encoding as an encoding of our network, so that only the encoding differs."""

    def __init__(self) -> None:
        vertices = level_vertices(LEVELS, BASE, GROWTH)
        super().__init__(vertices, FEATURES)
        self.encoding = NerfstudioHashEncoding(LEVELS, BASE, vertices[-1], LOG2_TABLE, FEATURES, implementation="torch")

    def forward(self, x_t: Tensor) -> Tensor:
        return self.encoding((x_t.t() + 1.0) * 0.5).t()


def field(encoding: str) -> PmniField:
    """Field of the default size with all levels unlocked."""
    built = PmniField(
        PmniFieldConfig(
            encoding=encoding,  # type: ignore[arg-type]
            grid_vertices=(33, 65, 129),
            hash_implementation="torch",
            hash_levels=LEVELS,
            hash_base_vertices=BASE,
            hash_growth=GROWTH,
            hash_log2_table=LOG2_TABLE,
            hash_features=FEATURES,
        )
    )
    built.set_progress(1.0)
    return built


def seconds(job: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def six_points(geometry: nn.Module, x: Tensor) -> Tensor:
    """Gradient by six-point differences, as the field computes it."""
    steps = 0.01 * torch.eye(3)
    values = geometry.sdf((x[:, None, None] + torch.stack([steps, -steps])).view(-1, 3)).view(-1, 2, 3)  # type: ignore[operator]
    return (values[:, 0] - values[:, 1]) / 0.02


def jobs(geometry: nn.Module, x: Tensor) -> list[Callable[[], None]]:
    """The four jobs: forward, backward, analytic gradient, six-point differences."""

    def forward() -> None:
        with torch.no_grad():
            geometry.sdf(x)  # type: ignore[operator]

    def backward() -> None:
        geometry.zero_grad()
        geometry.sdf(x).sum().backward()  # type: ignore[operator]

    def analytic() -> None:
        geometry.zero_grad()
        value, slope = geometry.sdf_and_gradient(x)  # type: ignore[operator]
        (value.sum() + (slope.square().sum(-1) - 1.0).square().sum()).backward()

    def differences() -> None:
        geometry.zero_grad()
        (six_points(geometry, x).square().sum(-1) - 1.0).square().sum().backward()

    return [forward, backward, analytic, differences]


def main() -> None:
    """Time all encodings, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=18000, help="points per job")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of threads of PyTorch")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls per job")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    # Points around a surface, as in training: a thin spherical shell.
    direction = nn.functional.normalize(torch.randn(arguments.points, 3), dim=-1)
    x = direction * (0.5 + 0.05 * torch.randn(arguments.points, 1))

    grid = field("grid")
    geometries = {
        "nerfstudio": EncodedSdf(NerfstudioLevels(), 64, 0.5),
        "hash": field("hash").geometry,
        "dense": field("dense").geometry,
        "grid": grid.geometry,
    }
    work = {name: jobs(geometry, x) for name, geometry in geometries.items()}
    # The encodings take turns, so that other load on the machine affects all alike; the first round is a warm-up.
    rounds = [
        {name: [seconds(job) for job in each] for name, each in work.items()} for _ in range(arguments.repeats + 1)
    ][1:]
    rows = {
        name: [arguments.points / statistics.median(times[name][job] for times in rounds) for job in range(4)]
        for name in work
    }

    titles = ("sdf", "sdf, backward", "sdf + gradient, backward", "six-point, backward")
    print(f"{arguments.points} points, {arguments.threads} threads: thousand points/s (ratio to nerfstudio's encoding)")
    print(f"{'encoding':12}" + "".join(f"{title:>28}" for title in titles))
    for name, row in rows.items():
        cells = (f"{speed / 1e3:,.0f} (x{speed / base:.1f})" for speed, base in zip(row, rows["nerfstudio"]))
        print(f"{name:12}" + "".join(f"{cell:>28}" for cell in cells))

    for fused in (False, True):
        optimizer = torch.optim.Adam(grid.param_groups()["sdf"], lr=1e-3, fused=fused)
        optimizer.step()
        step = statistics.median(seconds(optimizer.step) for _ in range(arguments.repeats))
        values = sum(parameter.numel() for parameter in grid.parameters())
        print(f"Adam on the grid's {values:,} values, fused={fused}: {1e3 * step:.1f} ms per step")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Measure training steps on a CPU with one thread, with spinning, sleeping and idle-pool OpenMP threads.

    python benchmarks/bench_threads.py [--steps 30] [--busy 0] [--repeats 3]

Each setting runs in a process of its own, in turns; --busy starts that many programs that keep a core busy meanwhile.
Prints the time of a step of the field (signed distance and six-point gradient, with backward pass and Adam step), and its
ratio to one thread. `spinning` is OpenMP's default, `passive` OMP_WAIT_POLICY=passive, and `package` what
`pmni_nerfstudio.threads` does: a pool of idle threads, so that libgomp lets waiting threads sleep.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

SETTINGS = ("one thread", "spinning", "passive", "package")
STEP = """
import sys, time, torch
if sys.argv[1] == "one thread":
    torch.set_num_threads(1)
elif sys.argv[1] == "package":
    from pmni_nerfstudio.threads import limit_threads
    limit_threads()
from pmni_nerfstudio.fields.sdf_field import PmniField, PmniFieldConfig
field = PmniField(PmniFieldConfig(grid_vertices=(33, 65, 129)))
field.set_progress(1.0)
adam = torch.optim.Adam(field.parameters(), fused=True)
generator = torch.Generator().manual_seed(0)

def step():
    points = torch.rand(18000, 3, generator=generator) * 2 - 1
    adam.zero_grad(set_to_none=True)
    gradient = field.numerical_gradient(points, 0.02)
    (field.sdf(points).square().mean() + (gradient.norm(dim=-1) - 1).square().mean()).backward()
    adam.step()

step()
start = time.perf_counter()
for _ in range(int(sys.argv[2])):
    step()
print((time.perf_counter() - start) / int(sys.argv[2]))
"""


def seconds_of_a_step(setting: str, steps: int) -> float:
    """Time of a step in a new process."""
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    if setting == "passive":
        environment["OMP_WAIT_POLICY"] = "passive"
    command = [sys.executable, "-c", STEP, setting, str(steps)]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return float(output.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--busy", type=int, default=0, help="programs that keep a core busy")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    try:
        times = {setting: [] for setting in SETTINGS}
        for _ in range(options.repeats):
            for setting in SETTINGS:
                times[setting].append(seconds_of_a_step(setting, options.steps))
    finally:
        for program in busy:
            program.kill()
    reference = statistics.median(times["one thread"])
    for setting in SETTINGS:
        median = statistics.median(times[setting])
        print(f"{setting:>12}: {1000 * median:6.1f} ms a step, {median / reference:.2f} times one thread")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Where jobs run: on this machine's cores or GPUs, or on a Ray cluster."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.studies.job import Job, Outcome, run_job
from pmni_nerfstudio.studies.processes import BIN

Engine = Literal["local", "ray"]
CORES_A_JOB = 2
"""Of a CPU: more hardly help a run, and fewer make it slower."""


def gpu_ids() -> list[str]:
    """Of the GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def jobs_at_once(gpus: Sequence[str]) -> int:
    """As many as there are GPUs, else one for two cores."""
    return len(gpus) if gpus else max(1, (os.cpu_count() or 1) // CORES_A_JOB)


def run_locally(
    jobs: Sequence[Job], out: Path, at_once: int, gpus: Sequence[str], bin_folder: Path = BIN
) -> Iterator[Outcome]:
    """Outcomes as they come. With GPUs each job has one of them, which no other has meanwhile.

    Args:
        jobs: to be done.
        out: folder of all jobs.
        at_once: so many side by side.
        gpus: of `gpu_ids`.
        bin_folder: of the commands.
    """
    free: queue.Queue[str] = queue.Queue()
    for i in range(at_once):
        free.put(gpus[i % len(gpus)] if gpus else "")

    def work(job: Job) -> Outcome:
        gpu = free.get()
        try:
            return run_job(job, out, {"CUDA_VISIBLE_DEVICES": gpu} if gpus else None, bin_folder)
        finally:
            free.put(gpu)

    # The processes of a pool's threads end with this program (see `run_command`), and so does its waiting.
    pool = ThreadPoolExecutor(at_once)
    try:
        for future in as_completed([pool.submit(work, job) for job in jobs]):
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def run_on_ray(
    jobs: Sequence[Job],
    out: Path,
    at_once: int | None,
    bin_folder: Path = BIN,
    started: Callable[[str], None] | None = None,
) -> Iterator[Outcome]:
    """The same on the cluster that RAY_ADDRESS names, else on a Ray of this machine's own.

    All nodes see `out` and the scenes under the same paths, and have this environment.

    Args:
        jobs: to be done.
        out: folder of all jobs.
        at_once: so many side by side at most; None: as many as the cluster has room for.
        bin_folder: of the commands.
        started: told where it runs.

    Raises:
        PmniError: Ray isn't installed.
    """
    try:
        import ray
    except ImportError as error:
        raise PmniError(
            "engine ray: Ray isn't installed: pip install 'pmni-nerfstudio[ray]', or --engine local"
        ) from error
    address = os.environ.get("RAY_ADDRESS")
    ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False)
    try:
        have = ray.cluster_resources()
        if started is not None:
            started(f"Ray: {len(ray.nodes())} node(s), {have.get('CPU', 0):g} cores, {have.get('GPU', 0):g} GPUs")
        task: Any = ray.remote(run_job)
        needs = {"num_gpus": 1} if have.get("GPU", 0) >= 1 else {"num_cpus": min(CORES_A_JOB, have.get("CPU", 1))}
        remote = task.options(**needs)
        waiting, running = list(jobs), []
        while waiting or running:
            while waiting and (at_once is None or len(running) < at_once):
                running.append(remote.remote(waiting.pop(0), out, None, bin_folder))
            done, running = ray.wait(running)
            yield from ray.get(done)
    finally:
        ray.shutdown()

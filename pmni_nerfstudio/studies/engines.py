# SPDX-License-Identifier: Apache-2.0
"""Where jobs run: on this machine's cores or GPUs, or on a Ray cluster."""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from pmni_nerfstudio.errors import PmniError, one_line
from pmni_nerfstudio.studies.job import Job, Outcome, run_job, with_reason
from pmni_nerfstudio.studies.processes import BIN, Stop

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
) -> Generator[Outcome, None, None]:
    """Outcomes as they come. Each job has its share of the cores and, where there are GPUs, one of these. To close it,
    an error or Ctrl-C among the reasons, ends what is at work.

    Args:
        jobs: to be done.
        out: folder of all jobs.
        at_once: so many side by side; if they are more than the GPUs, they share them.
        gpus: of `gpu_ids`.
        bin_folder: of the commands.
    """
    free: queue.Queue[str] = queue.Queue()
    for i in range(at_once):
        free.put(gpus[i % len(gpus)] if gpus else "")
    environment = {}
    if at_once > 1 and "OMP_NUM_THREADS" not in os.environ:  # each would take all cores
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // at_once))
    stop = Stop()

    def work(job: Job) -> Outcome:
        gpu = free.get()
        try:
            own = {**environment, "CUDA_VISIBLE_DEVICES": gpu} if gpus else environment
            return run_job(job, out, own, bin_folder, stop)
        finally:
            free.put(gpu)

    pool = ThreadPoolExecutor(at_once)
    try:
        for future in as_completed([pool.submit(work, job) for job in jobs]):
            yield future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def run_on_ray(
    jobs: Sequence[Job],
    out: Path,
    at_once: int | None,
    bin_folder: Path = BIN,
    started: Callable[[str], None] | None = None,
) -> Generator[Outcome, None, None]:
    """The same on the cluster that RAY_ADDRESS names, else on a Ray of this machine's own.

    All nodes see `out` and the scenes under the same paths, and have this environment.

    Args:
        jobs: to be done.
        out: folder of all jobs.
        at_once: so many side by side at most; None: as many as the cluster has room for.
        bin_folder: of the commands.
        started: told where it runs.

    Raises:
        PmniError: Ray isn't installed, or there is none where RAY_ADDRESS says.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise PmniError(
            "engine ray: Ray isn't installed: pip install 'pmni-nerfstudio[ray]', or --engine local"
        ) from error
    address = os.environ.get("RAY_ADDRESS")
    if address is not None and ":" in address:
        _reach(address)
    try:
        ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise PmniError(f"RAY_ADDRESS={address or ''}: Ray doesn't start ({one_line(error)[:200]})") from error
    try:
        have = ray.cluster_resources()
        if started is not None:
            started(f"Ray: {len(ray.nodes())} node(s), {have.get('CPU', 0):g} cores, {have.get('GPU', 0):g} GPUs")
        task: Any = ray.remote(run_job)
        # a job runs on one node, and would wait for ever for more cores than any has
        cores = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        needs = {"num_gpus": 1} if have.get("GPU", 0) >= 1 else {"num_cpus": min(CORES_A_JOB, cores)}
        remote = task.options(**needs)
        waiting, running = list(jobs), {}
        while waiting or running:
            while waiting and (at_once is None or len(running) < at_once):
                job = waiting.pop(0)
                running[remote.remote(job, out, None, bin_folder)] = job
            for done in ray.wait(list(running))[0]:
                job = running.pop(done)
                try:
                    yield ray.get(done)
                except RayTaskError:  # a defect, or an error of ours
                    raise
                except RayError as error:  # its node or worker is gone, and so were those after it
                    yield with_reason(job, f"Ray: {one_line(error)[:300]}", out)
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Ray itself tries for many minutes before it says that nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise PmniError(f"RAY_ADDRESS={address}: nobody answers ({one_line(error)}): is Ray started there?") from error

# SPDX-License-Identifier: Apache-2.0
"""Engines that run jobs in parallel: this machine's cores or GPUs, or a Ray cluster."""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pmni_nerfstudio.errors import PmniError, one_line
from pmni_nerfstudio.studies.processes import BIN_FOLDER, Cancellation

JobT_contra = TypeVar("JobT_contra", contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)

CORES_PER_JOB = 2
"""CPU cores per job: fewer slow it down, more hardly speed it up."""


def available_gpus() -> list[str]:
    """Available GPUs, as named in CUDA_VISIBLE_DEVICES."""
    import torch

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def default_parallel_jobs(gpus: Sequence[str]) -> int:
    """Default number of parallel jobs: one per GPU, or one per two cores where there are no GPUs."""
    return len(gpus) if gpus else max(1, (os.cpu_count() or 1) // CORES_PER_JOB)


class Work(Protocol[JobT_contra, ResultT_co]):
    """Function that an engine calls for each of its jobs, such as `job.run_job`; it may start processes of its own."""

    def __call__(
        self,
        job: JobT_contra,
        out: Path,
        environment: Mapping[str, str] | None = None,
        bin_folder: Path = BIN_FOLDER,
        cancellation: Cancellation | None = None,
    ) -> ResultT_co:
        """Run a job in the folder of all jobs; what fails of it is part of the result."""
        ...


def run_locally(
    work: Work[JobT_contra, ResultT_co],
    jobs: Sequence[JobT_contra],
    out: Path,
    parallel: int,
    gpus: Sequence[str],
    bin_folder: Path = BIN_FOLDER,
) -> Generator[ResultT_co, None, None]:
    """Run jobs on this machine and yield their results in order of completion.

    The cores are divided among parallel jobs, and each job gets one GPU. Closing the generator, as on an error or
    Ctrl-C, kills the running jobs.

    Args:
        work: what to run for each job.
        jobs: jobs to run.
        out: folder of all jobs.
        parallel: number of parallel jobs; if there are more of them than GPUs, they share the GPUs.
        gpus: GPUs to use, as from `available_gpus`.
        bin_folder: folder of ns-train and pmni.
    """
    free_gpus: queue.Queue[str] = queue.Queue()
    for i in range(parallel):
        free_gpus.put(gpus[i % len(gpus)] if gpus else "")
    environment = {}
    if parallel > 1 and "OMP_NUM_THREADS" not in os.environ:  # by default each job uses all cores
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // parallel))
    cancellation = Cancellation()

    def run(job: JobT_contra) -> ResultT_co:
        gpu = free_gpus.get()
        try:
            job_environment = {**environment, "CUDA_VISIBLE_DEVICES": gpu} if gpus else environment
            return work(job, out, job_environment, bin_folder, cancellation)
        finally:
            free_gpus.put(gpu)

    pool = ThreadPoolExecutor(parallel)
    try:
        for future in as_completed([pool.submit(run, job) for job in jobs]):
            yield future.result()
    finally:
        cancellation.cancel()
        pool.shutdown(cancel_futures=True)


def run_on_ray(
    work: Work[JobT_contra, ResultT_co],
    failed: Callable[[JobT_contra, str, Path], ResultT_co],
    jobs: Sequence[JobT_contra],
    out: Path,
    max_parallel: int | None,
    bin_folder: Path = BIN_FOLDER,
    on_start: Callable[[str], None] | None = None,
) -> Generator[ResultT_co, None, None]:
    """Run jobs on the Ray cluster that RAY_ADDRESS names, or else on a local Ray instance.

    All nodes must have `out` and the scenes under the same paths, and this Python environment.

    Args:
        work: what to run for each job.
        failed: result of a job whose node or worker Ray lost, from the job, the reason and the folder of all jobs.
        jobs: jobs to run.
        out: folder of all jobs.
        max_parallel: maximum number of parallel jobs; None: as many as the cluster has resources for.
        bin_folder: folder of ns-train and pmni.
        on_start: called with a description of the cluster.

    Raises:
        PmniError: Ray is not installed, or no cluster is running at RAY_ADDRESS.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise PmniError(
            "engine ray: Ray isn't installed; run pip install 'pmni-nerfstudio[ray]', or use --engine local"
        ) from error
    address = os.environ.get("RAY_ADDRESS")
    if address is not None and ":" in address:
        _check_connection(address)
    try:
        ray.init(address=address, include_dashboard=False if address is None else None, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise PmniError(f"RAY_ADDRESS={address or ''}: Ray does not start ({one_line(error)[:200]})") from error
    try:
        resources = ray.cluster_resources()
        if on_start is not None:
            cores, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
            on_start(f"Ray: {len(ray.nodes())} node(s), {cores:g} cores, {gpus:g} GPUs")
        task: Any = ray.remote(work)
        # A job runs on one node, and would wait forever for more cores than any node has.
        cores = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        needs = {"num_gpus": 1} if resources.get("GPU", 0) >= 1 else {"num_cpus": min(CORES_PER_JOB, cores)}
        remote = task.options(**needs)
        waiting, running = list(jobs), {}
        while waiting or running:
            while waiting and (max_parallel is None or len(running) < max_parallel):
                job = waiting.pop(0)
                running[remote.remote(job, out, None, bin_folder)] = job
            for done in ray.wait(list(running))[0]:
                job = running.pop(done)
                try:
                    yield ray.get(done)
                except RayTaskError:  # an exception of the work itself
                    raise
                except RayError as error:  # Ray lost the node or worker, after its own retries
                    yield failed(job, f"Ray: {one_line(error)[:300]}", out)
    finally:
        ray.shutdown()


def _check_connection(address: str) -> None:
    """Fail quickly if no server is listening, where Ray itself would retry for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise PmniError(f"RAY_ADDRESS={address}: no connection ({one_line(error)}); start Ray there") from error

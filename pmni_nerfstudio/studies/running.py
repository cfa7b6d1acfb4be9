# SPDX-License-Identifier: Apache-2.0
"""Execution of a list of jobs with a progress bar; jobs that finished earlier are not run again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pmni_nerfstudio.data.folder_lock import lock_folder
from pmni_nerfstudio.studies.job import Job, JobResult, failed_result, read_finished, unsupported_reason
from pmni_nerfstudio.studies.summary import measure

Engine = Callable[[Sequence[Job]], Generator[JobResult, None, None]]
"""Runs jobs and yields their results in order of completion; when closed, it kills the running jobs."""


def run_jobs(
    jobs: Sequence[Job],
    out: Path,
    engine: Engine,
    console: Console,
    unsupported: Callable[[str], str | None] = unsupported_reason,
) -> list[JobResult]:
    """Run the jobs that have not finished yet, and return the results of all jobs in their order.

    Args:
        jobs: jobs to run.
        out: existing folder of all jobs.
        engine: runs the remaining jobs.
        console: console for progress.
        unsupported: returns the reason why a method cannot run on this machine, or None.

    Raises:
        PmniError: a method does not exist, a record of an earlier run cannot be read, or another process is using the
            folder.
        SystemExit: with code 130, after Ctrl-C.
    """
    with lock_folder(out):
        reasons = {method: unsupported(method) for method in dict.fromkeys(job.method for job in jobs)}
        results: dict[str, JobResult] = {}
        for job in jobs:
            finished, reason = read_finished(job, out), reasons[job.method]
            if finished is not None:
                results[job.name] = finished
            elif reason is not None:
                results[job.name] = failed_result(job, reason, out)
        remaining = [job for job in jobs if job.name not in results]
        if len(remaining) < len(jobs):
            console.print(
                f"{len(jobs) - len(remaining)} of {len(jobs)} jobs are finished or cannot run on this machine."
            )
        if not remaining:
            return [results[job.name] for job in jobs]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        try:
            with (
                Progress(*columns, console=console, transient=True) as progress,
                closing(engine(remaining)) as finishing,
            ):
                task = progress.add_task("Training and evaluating", total=len(remaining))
                for result in finishing:
                    results[Path(result.folder).name] = result
                    console.print(_line(result), highlight=False, soft_wrap=True)
                    progress.advance(task)
        except KeyboardInterrupt:
            message = f"Stopped. Finished jobs are kept in {out}; run the same command again to continue."
            console.print(message, highlight=False, soft_wrap=True, markup=False)
            raise SystemExit(130) from None
        return [results[job.name] for job in jobs]


def _line(result: JobResult) -> str:
    """One line of console markup about a result."""
    head = escape(f"{result.label}, {Path(result.scene).name}, seed {result.seed}")
    if result.reason is not None:
        return f"[red]failed[/red] {head}: {escape(result.reason)}"
    measures = [
        f"{value:.3g} {unit}"
        for column, unit in (
            ("rot_deg", "deg rotation error"),
            ("chamfer_pct", "% Chamfer"),
            ("mae_deg", "deg normal error"),
        )
        if (value := measure(result, column)) is not None
    ]
    return f"done {head}: {', '.join(measures)}, {result.seconds:.0f} s"
